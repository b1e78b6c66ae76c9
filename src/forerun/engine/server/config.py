"""Options of the server: where it listens, and what it lets in."""

from dataclasses import dataclass, field

from forerun.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerConfig:
    """What the server accepts, and how long anything may take.

    Attributes:
        host: Address to listen on; 0.0.0.0 for every interface.
        port: TCP port; 0 takes a free one.
        unix_socket: Path of a socket to listen on, instead of address and port.
        root_path: Beginning of every path as clients see it, where a proxy cuts it off, such as ``/llm``.
        tls_certificate: File with the certificate chain in PEM, to serve over TLS.
        tls_key: File with its private key in PEM; without a password.
        api_keys: Keys of which a request to the API must bear one; none: anyone may ask.
        model_name: Name that clients ask for; ``None``: from the target's.
        max_num_batched_tokens: Most tokens in one pass of the target; also how long a part of a prompt is.
        max_cached_tokens: Tokens whose keys and values are kept, of requests that run and of prefixes to reuse;
            ``None``: as many as all sequences can hold. For want of room, requests wait or are put aside.
        max_waiting: Completions that may wait for a sequence of the cache; beyond, requests get 429.
        max_choices: Completions that one request may ask for: prompts times ``n``.
        max_body_bytes: Size of a request's body.
        header_timeout_s: Time for a request's headers to arrive.
        body_timeout_s: Time for a request's body to arrive.
        write_timeout_s: Time for which a client may take nothing of its answer.
        request_timeout_s: Time for a request, waiting included.
        drain_timeout_s: After SIGTERM, time for running requests to end.
        max_connections: Open connections; beyond, 503.
        cors_origins: Origins whose pages may call the API from a browser; none: no other page may.
        allowed_hosts: Names under which clients may ask for this server, besides addresses and ``localhost``; none: any
            where it listens to other machines, else no other.
        reuses_prefixes: Whether prompts that begin alike share what was computed.
        logs_prompts: Whether the log holds prompts and outputs.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    unix_socket: str | None = None
    root_path: str = ""
    tls_certificate: str | None = None
    tls_key: str | None = None
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    model_name: str | None = None
    max_num_batched_tokens: int = 64
    max_cached_tokens: int | None = None
    max_waiting: int = 64
    max_choices: int = 16
    max_body_bytes: int = 1 << 20
    header_timeout_s: float = 10.0
    body_timeout_s: float = 10.0
    write_timeout_s: float = 30.0
    request_timeout_s: float = 600.0
    drain_timeout_s: float = 30.0
    max_connections: int = 512
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    reuses_prefixes: bool = True
    logs_prompts: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port={self.port}: must be in [0, 65535]; 0 takes a free one")
        for name in ("max_num_batched_tokens", "max_choices", "max_body_bytes", "max_connections"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be >= 1")
        if self.max_cached_tokens is not None and self.max_cached_tokens < 1:
            raise ConfigError(f"max_cached_tokens={self.max_cached_tokens}: must be >= 1; leave it out for no limit")
        if self.max_waiting < 0:
            raise ConfigError(f"max_waiting={self.max_waiting}: must be >= 0; with 0 nothing waits")
        for name in ("header_timeout_s", "body_timeout_s", "write_timeout_s", "request_timeout_s", "drain_timeout_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)}: must be > 0 seconds")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ConfigError(
                f"tls_certificate={self.tls_certificate!r}, tls_key={self.tls_key!r}: give both, or neither for plain "
                "HTTP"
            )
        if self.root_path and (not self.root_path.startswith("/") or self.root_path.endswith("/")):
            raise ConfigError(f"root_path={self.root_path!r}: must begin with / and not end with it, such as /llm")
        for origin in self.cors_origins:
            if origin != "*" and "/" in origin.partition("://")[2]:
                raise ConfigError(
                    f"cors_origins={origin!r}: no page has it; give scheme, name and maybe port, such as "
                    f"{'/'.join(origin.split('/')[:3])}"
                )
        for name in self.allowed_hosts:
            if not name.strip() or set(name) & set(":/ "):
                raise ConfigError(f"allowed_hosts={name!r}: give a name alone, such as models.example")
        if any(not key.strip() or not key.isascii() for key in self.api_keys):
            raise ConfigError("api_keys: each must be ASCII and not blank")
