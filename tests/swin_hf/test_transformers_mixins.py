"""The tests that transformers holds its own models to, run on ours.

They are in transformers' source distribution, not in its wheel. `make conformance` fetches it and runs this file; without it
the file is skipped.
"""

import os
import sys
import types
import unittest
import unittest.mock
from pathlib import Path

import pytest
import torch
import transformers
from conftest import KINDS, TINY
from transformers.models.auto import modeling_auto
from transformers.testing_utils import torch_device

from swin_hf import (
    SwinHfBackbone,
    SwinHfConfig,
    SwinHfForImageClassification,
    SwinHfForMaskedImageModeling,
    SwinHfModel,
)
from swin_hf.convolutions_swin_hf import SwinHfConvStem
from swin_hf.layers_swin_hf import SwinHfPatchEmbeddings

SOURCE = Path(os.environ.get("TRANSFORMERS_SOURCE", "not given"))
if not (SOURCE / "tests" / "test_modeling_common.py").is_file():
    pytest.skip("TRANSFORMERS_SOURCE names no source distribution of transformers; make conformance", allow_module_level=True)


def import_common_tests() -> list[type]:
    """The mixins for models, backbones and configurations, without the test suites of text generation and exporters."""
    package = types.ModuleType("transformers_tests")
    package.__path__ = [str(SOURCE / "tests")]
    sys.modules["transformers_tests"] = package
    for name, contents in {
        "exporters.test_export": {"ExportTesterMixin": object},
        "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
        "utils.test_configuration_utils": {"config_common_kwargs": {}},
    }.items():
        parent, _, _ = name.partition(".")
        sys.modules.setdefault(f"transformers_tests.{parent}", types.ModuleType(parent)).__path__ = []
        module = types.ModuleType(name)
        vars(module).update(contents)
        sys.modules[f"transformers_tests.{name}"] = module
    with unittest.mock.patch("transformers.utils.direct_transformers_import", return_value=transformers):
        from transformers_tests.test_backbone_common import BackboneTesterMixin
        from transformers_tests.test_configuration_common import ConfigTester
        from transformers_tests.test_modeling_common import ModelTesterMixin

    return [ModelTesterMixin, BackboneTesterMixin, ConfigTester]


ModelTesterMixin, BackboneTesterMixin, ConfigTester = import_common_tests()
# By these names the mixins know whether a model has a loss and what labels it takes.
modeling_auto.MODEL_MAPPING_NAMES["swin_hf"] = "SwinHfModel"
modeling_auto.MODEL_FOR_BACKBONE_MAPPING_NAMES["swin_hf"] = "SwinHfBackbone"
modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES["swin_hf"] = "SwinHfForImageClassification"
modeling_auto.MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING_NAMES["swin_hf"] = "SwinHfForMaskedImageModeling"


class SwinHfTester:
    """What the mixins ask about a model: a small config and inputs for it."""

    def __init__(self, parent: unittest.TestCase, kind: str):
        self.parent, self.settings = parent, TINY | KINDS[kind]
        self.is_training = True
        self.batch_size, self.num_channels = 3, 3
        self.image_size, self.patch_size = self.settings["image_size"], self.settings["patch_size"]
        self.num_hidden_layers, self.num_masks = len(TINY["depths"]), 10
        self.seq_length, self.hidden_size = (self.image_size // self.patch_size) ** 2, TINY["embed_dim"]  # of the first map

    def get_config(self) -> SwinHfConfig:
        stride = 2 * self.patch_size
        return SwinHfConfig(num_labels=3, encoder_stride=stride, out_features=["stage1", "stage2"], **self.settings)

    def prepare_config_and_inputs_for_common(self) -> tuple[SwinHfConfig, dict[str, torch.Tensor]]:
        pixel_values = torch.rand(self.batch_size, self.num_channels, self.image_size, self.image_size, device=torch_device)
        return self.get_config(), {"pixel_values": pixel_values}

    def prepare_config_and_inputs(self):
        config, inputs = self.prepare_config_and_inputs_for_common()
        return config, inputs["pixel_values"], torch.zeros(self.batch_size, dtype=torch.long, device=torch_device)


class ModelTests(ModelTesterMixin):
    all_model_classes = (SwinHfModel, SwinHfForImageClassification, SwinHfForMaskedImageModeling, SwinHfBackbone)
    pipeline_model_mapping = {"image-feature-extraction": SwinHfModel, "image-classification": SwinHfForImageClassification}
    test_resize_embeddings = False

    def setUp(self):
        self.model_tester = SwinHfTester(self, self.kind)
        self.config_tester = ConfigTester(
            self, config_class=SwinHfConfig, has_text_modality=False, common_properties=["hidden_size", "num_channels"]
        )

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_attention_outputs(self):
        """In place of the mixin's: windows of 4 x 4 tokens, and stages with different numbers of blocks and heads."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        config._attn_implementation = "eager"
        for model_class in self.all_model_classes:
            attentions = model_class(config).eval()(**inputs, output_attentions=True).attentions
            heads_and_tokens = [tuple(weights.shape[1:]) for weights in attentions]
            self.assertEqual(heads_and_tokens, self.heads_and_tokens)

    def test_hidden_states_output(self):
        """Without the backbone, whose hidden states are (B, C, H, W) as in the stock one."""
        self.all_model_classes = [model_class for model_class in self.all_model_classes if model_class is not SwinHfBackbone]
        super().test_hidden_states_output()

    def test_model_get_set_embeddings(self):
        """In place of the mixin's, which expects embeddings of words."""
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            self.assertIsInstance(model_class(config).get_input_embeddings(), (SwinHfPatchEmbeddings, SwinHfConvStem))


class TestSwin(ModelTests, unittest.TestCase):
    kind, heads_and_tokens = "V1", [(2, 16, 16), (4, 16, 16), (4, 16, 16)]


class TestSwinV2(ModelTests, unittest.TestCase):
    kind, heads_and_tokens = "V2", [(2, 16, 16), (4, 16, 16), (4, 16, 16)]


class TestTinyViT(ModelTests, unittest.TestCase):
    kind, heads_and_tokens = "TinyViT", [(4, 16, 16), (4, 16, 16)]


class TestMixedHybrid(ModelTests, unittest.TestCase):
    kind, heads_and_tokens = "mixed", [(2, 9, 9)]


class TestSwinBackbone(BackboneTesterMixin, unittest.TestCase):
    all_model_classes = (SwinHfBackbone,)
    config_class, kind = SwinHfConfig, "V1"

    def setUp(self):
        self.model_tester = SwinHfTester(self, self.kind)


class TestTinyViTBackbone(TestSwinBackbone):
    kind = "TinyViT"
