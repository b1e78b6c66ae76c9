"""A model shared by two processes over gloo has the law of one process; and what can't be shared is refused."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from simulated import parallel_process
from simulated.parallel_process import CACHE, CONFIG, CPU, join, share, weights
from torch import distributed

from forerun.core.errors import ConfigError
from forerun.core.rows import Rows
from forerun.models.decoder_weights import fill_decoder
from forerun.models.tensor_parallel import LeadingRunner, share_of_config, share_of_tensor
from forerun.models.torch_runner import TorchRunner


@pytest.fixture
def pair(tmp_path):
    """The first of two processes, and the whole model in this one."""
    store = tmp_path / "store"
    script = Path(parallel_process.__file__)
    other = subprocess.Popen([sys.executable, str(script), str(store)], env=None)
    collective = join(store, rank=0)
    leading = LeadingRunner(share(collective), collective, device=CPU)
    try:
        yield leading, TorchRunner(fill_decoder(CONFIG, weights().__getitem__), **CACHE)
        leading.close()
        assert other.wait(timeout=60) == 0
    finally:
        other.kill()
        distributed.destroy_process_group()


def test_two_processes_compute_what_one_does(pair):
    shared, whole = pair
    texts = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 20)).tolist()

    def agree(rows: Rows, **options) -> None:
        np.testing.assert_allclose(shared.forward(rows, **options), whole.forward(rows, **options), atol=2e-5, rtol=0)

    agree(Rows.chains([(0, 0, texts[0]), (1, 0, texts[1])]))
    agree(Rows.chains([(0, 20, [3, 4])]), logit_rows=np.array([1]))
    for runner in pair:
        runner.move_slots(1, [19], [10])
    agree(Rows.chains([(1, 11, [5])]))
    states = [runner.read_states(0, 2, 7, layer_ids=[1, 0]) for runner in pair]
    np.testing.assert_allclose(*states, atol=2e-5, rtol=0)
    for runner in pair:
        runner.write_states(1, 2, states[0][:, ::-1].copy())
    agree(Rows.chains([(1, 7, [8, 9])]))


@pytest.mark.parametrize("change", [{"num_kv_heads": 3, "num_heads": 6}, {"intermediate_size": 35}])
def test_what_does_not_divide_is_refused(change):
    with pytest.raises(ConfigError, match=f"{next(iter(change))}=.* can't be shared by 2 processes"):
        share_of_config(replace(CONFIG, **change), size=2)


def test_shares_put_together_are_the_whole():
    for name, values in weights().items():
        shares = [share_of_tensor(name, values, rank=rank, size=2) for rank in range(2)]
        if "proj" not in name:
            assert all(part is values for part in shares)
            continue
        axis = 1 if "o_proj" in name or "down_proj" in name else 0
        np.testing.assert_array_equal(np.concatenate(shares, axis=axis), values)
        assert shares[0].shape == shares[1].shape
