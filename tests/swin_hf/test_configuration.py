"""The config: refusals that name the field, typos, derived values, and a config.json that comes back as it went."""

import copy

import pytest
from transformers import AutoConfig

from swin_hf import SwinHfConfig, SwinHfForImageClassification, SwinHfUperNetConfig
from swin_hf.configuration_swin_hf import likely_typos
from swin_hf.convert import load


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": [2]}, "num_heads must have one entry per stage"),
        ({"num_heads": [2, 5]}, r"num_heads\[1\] must divide the 32 channels"),
        ({"depths": [1, 0]}, "depths must hold 1 to 1000 blocks for each stage"),
        ({"depths": [1, 10**6]}, "depths must hold 1 to 1000 blocks for each stage"),
        ({"num_labels": 10**9}, "num_labels must be at most 1000000, got 1000000000"),
        ({"block_mlp_dim": [[8], [8]]}, "block_mlp_dim must have one entry per block"),
        ({"block_num_heads": [[1], [1, 0]]}, "block_num_heads must be positive"),
        ({"patch_size": 0}, "patch_size must be positive"),
        ({"weight_init": "xavier"}, "weight_init must be 'normal' or 'fan_in', got 'xavier'"),
        ({"version": 3}, "version must be 1 or 2, got 3"),
        ({"stem": "convolution"}, "stem must be 'patch' or 'conv', got 'convolution'"),
        ({"stem": "conv", "patch_size": 3}, "patch_size must be one of 2, 4, 8, 16 for the stem 'conv', got 3"),
        ({"stem": "conv", "patch_size": [2, 4]}, "patch_size must be one of 2, 4, 8, 16 for the stem 'conv'"),
        ({"stem": "conv", "patch_size": 4, "embed_dim": 15}, "embed_dim must be a multiple of 2 for the stem 'conv'"),
        ({"stage_blocks": ["conv"]}, "stage_blocks must have one entry per stage"),
        ({"stage_blocks": ["conv", "mbconv"]}, "stage_blocks must be 'window' or 'conv' for each stage"),
        ({"stage_windows": [4, 0]}, "stage_windows must be positive"),
        ({"stage_windows": [4, [4]]}, r"stage_windows must hold one integer or \(height, width\) for each stage"),
        ({"stage_windows": [4, [4, 4, 4]]}, r"stage_windows must hold one integer or \(height, width\) for each stage"),
        ({"pretrained_window_sizes": [4, [4]]}, r"pretrained_window_sizes must hold one integer or \(height, width\)"),
        ({"pretrained_window_sizes": [4, -1]}, "pretrained_window_sizes must be 0 or more"),
        ({"mlp_ratio": 0.01}, "mlp_ratio must give each block a hidden channel, got 0.01 for the 16 channels of stage 0"),
        ({"mbconv_ratio": 0.01, "stage_blocks": ["conv", "window"]}, "mbconv_ratio must give each block a hidden channel"),
        ({"num_heads": [-1, 2], "stage_blocks": ["conv", "window"]}, r"num_heads\[0\] must be 0 or more in a convolutional"),
        ({"local_conv": 2}, "local_conv must be 0 or an odd kernel, got 2"),
        ({"mbconv_ratio": 0}, "mbconv_ratio must be a finite number, above 0"),
        ({"calibration_temperature": 0}, "calibration_temperature must be a finite number, above 0"),
        ({"calibration_temperature": float("nan")}, "calibration_temperature must be a finite number, above 0"),
        ({"padding": "tiny_vit", "version": 2}, "padding must be 'swin' for version 2"),
        ({"norm": "group"}, "norm must be 'layer' or 'rms' or 'batch'"),
        ({"hidden_act": "gelo"}, "hidden_act must name an activation .* did you mean gelu"),
        ({"window_size": [4, 4, 4]}, r"window_size must be one integer or \(height, width\)"),
        ({"stage_dims": [16, 0]}, "stage_dims must be positive and start with embed_dim 16"),
        ({"stage_dims": [24, 48]}, "stage_dims must be positive and start with embed_dim 16"),
        ({"stage_dims": [16]}, "stage_dims must have one entry per stage"),
        ({"stage_dims": []}, "stage_dims must have one entry per stage"),
        ({"pretrained_window_sizes": [4]}, "pretrained_window_sizes must have one entry per stage"),
        ({"drop_path_rate": 1.5}, r"drop_path_rate must lie in \[0, 1\), got 1.5"),
        ({"out_features": ["stage9"]}, "out_features must be a subset of stage_names"),
    ],
)
def test_bad_config_is_refused_by_name(make_model, changes, message):
    with pytest.raises(Exception, match=message):
        make_model(**changes)


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("windw_size", "window_size"), ("window", "window_size"), ("drop_path", "drop_path_rate"), ("num_label", "num_labels"),
        ("path_norm", "norm"), ("n_heads", "num_heads"), ("use_absolute_embedding", "use_absolute_embeddings"),
    ],
)  # fmt: skip
def test_typos_are_refused_with_a_suggestion(typo, meant):
    with pytest.raises(ValueError, match=f"no field {typo}; did you mean {meant}"):
        SwinHfConfig(**{typo: 1})


def test_keys_of_the_base_class_and_notes_of_users_pass():
    legacy = "torchscript use_bfloat16 pruned_heads tie_word_embeddings is_decoder num_beams output_scores return_dict"
    legacy += " finetuning_task tokenizer_class task_specific_params _name_or_path decoder_start_token_id torch_dtype"
    config = SwinHfConfig(**dict.fromkeys(legacy.split()), author="me", num_labels=7, problem_type="regression")
    assert (config.author, config.num_labels, config.problem_type) == ("me", 7, "regression")


def test_config_comes_back_as_it_went(tmp_path):
    config = SwinHfConfig(
        version=2, image_size=[64, 96], depths=[1, 2], num_heads=[2, 4], stage_dims=[96, 128], norm="rms",
        window_size=[4, 6], pretrained_window_sizes=[8, [4, 6]], mask_padding=True, out_features=["stem", "stage2"],
        block_value_head_dim=[[8], [16, 8]], block_mlp_dim=[[8], [16, 24]], id2label={0: "a", 1: "b", 2: "c"},
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    again = SwinHfConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    assert (again.hidden_size, again.num_layers, again.out_indices) == (128, 2, [0, 2])


def test_changes_of_a_saved_config_are_validated_and_derived_from(make_config, tmp_path):
    make_config().save_pretrained(tmp_path)
    changed = SwinHfConfig.from_pretrained(tmp_path, stage_dims=[16, 48], drop_path_rate=0.3, out_features=["stage1"])
    assert (changed.hidden_size, changed.drop_path_rate, changed.out_features) == (48, 0.3, ["stage1"])
    with pytest.raises(Exception, match="stem must be 'patch' or 'conv', got 'cnv'"):
        SwinHfConfig.from_pretrained(tmp_path, stem="cnv")
    with pytest.raises(Exception, match="stage_blocks must have one entry per stage"):
        AutoConfig.from_pretrained(tmp_path, stage_blocks=["conv"])
    config, unused = SwinHfConfig.from_pretrained(tmp_path, depths=[1, 1], colour="red", return_unused_kwargs=True)
    assert (config.depths, unused) == ([1, 1], {"colour": "red"})


def test_derived_values_in_a_file_do_not_win():
    config = SwinHfConfig(depths=[1, 1], num_heads=[3, 6], num_layers=9, hidden_size=7, stage_names=["x"])
    assert (config.num_layers, config.hidden_size, config.stage_names) == (2, 192, ["stem", "stage1", "stage2"])


def test_dense_rule_and_widths_by_hand():
    config = SwinHfConfig(embed_dim=24, depths=[1, 1], num_heads=[3, 4], mlp_ratio=2.5, block_value_head_dim=[[4], [8]])
    first, second = config.block_widths(0, 0), config.block_widths(1, 0)
    assert (first.num_heads, first.head_dim, first.value_head_dim, first.mlp_dim) == (3, 8, 4, 60)
    assert (second.num_heads, second.head_dim, second.value_head_dim, second.mlp_dim) == (4, 12, 8, 120)
    model = SwinHfForImageClassification(config)
    attention = model.swin.encoder.layers[1].blocks[0].attention
    shapes = [tuple(getattr(attention, name).weight.shape) for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
    assert shapes == [(48, 48), (48, 48), (32, 48), (48, 32)]


def test_v2_windows_stay_inside_the_map_of_the_configured_image():
    config = SwinHfConfig(version=2, image_size=256, window_size=16, pretrained_window_sizes=[12, 12, 12, 6])
    assert [config.stage_window(stage) for stage in range(4)] == [(16, 16), (16, 16), (16, 16), (8, 8)]
    assert [config.pretrained_window(stage) for stage in range(4)] == [(12, 12), (12, 12), (12, 12), (6, 6)]
    assert SwinHfConfig(image_size=256, window_size=16).stage_window(3) == (16, 16)


def test_attributes_that_others_set_stay_through_saving_copying_and_loading(tmp_path):
    config = SwinHfConfig(image_size=16, patch_size=2, embed_dim=16, depths=[1], num_heads=[2], window_size=4)
    given = {"batch_norm_eps": 1.0, "norm_eps": 0.5, "window": 7, "mlp_ratios": [1, 2]}
    assert set(given) == set(likely_typos(given, SwinHfConfig))
    for name, value in given.items():
        setattr(config, name, value)
    model = SwinHfForImageClassification(config)
    model.save_pretrained(tmp_path)
    loaded, unused = SwinHfConfig.from_pretrained(tmp_path, return_unused_kwargs=True, window_size=2, unheard_of=1)
    assert (loaded.window_size, unused) == (2, {"unheard_of": 1})
    copies = [copy.deepcopy(config), AutoConfig.from_pretrained(tmp_path), SwinHfConfig.from_dict(config.to_dict()), loaded]
    copies += [SwinHfForImageClassification.from_pretrained(tmp_path).config, load(tmp_path)[0].config]
    for own in copies:
        assert {name: getattr(own, name) for name in given} == given
    whole = SwinHfUperNetConfig(backbone_config=config, use_auxiliary_head=False)
    assert SwinHfUperNetConfig.from_dict(whole.to_dict()).backbone_config.batch_norm_eps == 1.0
    with pytest.raises(ValueError, match="no field windw_size; did you mean window_size"):
        SwinHfUperNetConfig(backbone_config={"windw_size": 4}, use_auxiliary_head=False)


@pytest.mark.parametrize("windows", [[(3, 3), (2, 5)], ((3, 3), (2, 5)), [[3, 3], [2, 5]], [3, (2, 5)]])
def test_windows_of_stages_may_be_lists_or_tuples(make_model, windows):
    model = make_model(stage_windows=windows)
    assert [model.config.stage_window(stage) for stage in (0, 1)] == [(3, 3), (2, 5)]
    assert model.resize(stage_windows=windows[::-1]).config.stage_window(0) == (2, 5)
