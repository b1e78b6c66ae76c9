"""From a draft's weights to a draft in rounds of one launch: on which devices, with room for how large a tree."""

from dataclasses import dataclass

from forerun.core.dtype_choice import DtypeName
from forerun.core.protocols import LanguageModel
from forerun.engine.config import EngineConfig
from forerun.engine.speculative.device_draft import DeviceDraft
from forerun.engine.speculative.draft_replicas import DraftReplicas, RoundDraft
from forerun.models.device import DeviceOptions, devices_from, recorder_for
from forerun.models.device_head import FeatureLender
from forerun.models.device_runner import DeviceRunner, LentLayers
from forerun.models.draft import Draft
from forerun.models.draft_laws import DraftLaws
from forerun.models.draft_runner import build_device_draft
from forerun.models.leading_runner import LeadingRunner


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundSizes:
    """What a draft has to have room for.

    Attributes:
        num_outcomes: B, outcomes prepared at most, by all copies together.
        num_tokens: Tokens of a draft at most.
        capacity: Slots of a sequence.
        vocab_size: Of the target.
    """

    num_outcomes: int
    num_tokens: int
    capacity: int
    vocab_size: int


def load_round_draft(
    draft: Draft, target: LanguageModel, config: EngineConfig, *, sizes: RoundSizes, dtype: DtypeName
) -> RoundDraft:
    """Load a draft for passes of fixed shape; it reads of the target what it was made to read.

    That is hidden states, for a head, and keys and values for others, which neither a target that processes share nor
    an ensemble lends.

    Args:
        draft: Its weights.
        target: Whose tokens are drafted; one that keeps hidden states, for a head.
        config: The engine's.
        sizes: What there has to be room for.
        dtype: Format of the target's weights, which the draft takes where its shapes allow.

    Returns:
        One draft, or as many as ``draft_data_parallel`` says, each on a device of its own.

    Raises:
        ConfigError: A device is missing, or memory holds fewer sequences than the target's.
    """
    num_copies = config.draft_data_parallel
    devices = devices_from(config.draft_device or config.device, num_copies, option="draft_data_parallel")
    recorders = [
        recorder_for(device, is_eager=config.runs_eagerly, is_urgent=False, sm_share=config.draft_sm_share)
        for device in devices
    ]
    runs_on_device = isinstance(target, DeviceRunner | LeadingRunner)
    laws: DraftLaws | None = None
    lender: FeatureLender | LentLayers | None = None
    if draft.eagle3 is not None:
        assert runs_on_device, "a target that keeps no hidden states was refused before"
        target.keep_features(draft.eagle3.layer_ids)
        lender = target
    elif draft.state_layer_ids and isinstance(target, DeviceRunner):
        lender = LentLayers.of(target, draft.state_layer_ids)
    drafts: list[DeviceDraft] = []
    for recorder in recorders:
        assert recorder is not None, "runs_on_device means passes of fixed shape"
        num_slots = -(-sizes.num_outcomes // num_copies) * sizes.num_tokens
        runner = build_device_draft(
            draft,
            dtype=dtype,
            num_sequences=target.num_sequences,
            capacity=sizes.capacity,
            options=DeviceOptions(recorder=recorder, backend=config.attention, num_tree_slots=num_slots),
        )
        if config.speculative.verification == "rejection" and laws is None:
            laws = DraftLaws(
                num_sequences=target.num_sequences,
                num_places=sizes.num_tokens,
                vocab_ids=draft.vocab_ids,
                vocab_size=sizes.vocab_size,
                recorder=target.recorder if runs_on_device else recorder,
            )
            if runs_on_device:
                target.verify_by(laws)
        drafts.append(DeviceDraft(runner, laws=laws, lender=lender))
    return drafts[0] if num_copies == 1 else DraftReplicas(drafts)
