"""What every ``TensorReader`` promises, whatever the file format."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from forerun.core.errors import ModelLoadError
from forerun.models.checkpoint import Checkpoint
from forerun.models.decoder import Decoder
from forerun.models.export import save_huggingface
from forerun.models.layout import parameter_shapes
from forerun.models.load import load_checkpoint

pytestmark = pytest.mark.model


@pytest.fixture(scope="module", params=["gguf", "safetensors"])
def checkpoint(request, tmp_path_factory) -> Checkpoint:
    default = load_checkpoint("default")
    if request.param == "gguf":
        return default
    directory: Path = tmp_path_factory.mktemp("model")
    decoder = Decoder(replace(default.config, hidden_size=16, intermediate_size=24, num_layers=2))
    save_huggingface(decoder, directory, tokenizer=default.tokenizer)
    return load_checkpoint(directory)


def test_names_are_those_of_the_decoder(checkpoint):
    names = checkpoint.tensors.names()
    assert len(set(names)) == len(names)
    assert set(names) == set(parameter_shapes(checkpoint.config))


def test_tensors_are_fresh_float32_arrays_of_the_stated_shape(checkpoint):
    for name, shape in list(parameter_shapes(checkpoint.config).items())[1:14]:
        values = checkpoint.tensors.tensor(name)
        assert values.shape == shape
        assert values.dtype == np.float32
        assert values.flags.writeable
        assert values.flags.c_contiguous
        assert np.isfinite(values).all()
        values[...] = 0
        assert checkpoint.tensors.tensor(name).any()


def test_an_unknown_name_is_an_error(checkpoint):
    with pytest.raises(ModelLoadError, match=r"no parameter 'none\.weight'"):
        checkpoint.tensors.tensor("none.weight")
