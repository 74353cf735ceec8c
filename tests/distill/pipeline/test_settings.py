"""Settings: files and command line through one parser; mistakes are named before any work."""

import re

import pytest
import torch
from accelerate.state import PartialState

from distill.errors import SettingsError
from distill.pipeline.run_folder import Run
from distill.pipeline.settings import CONFIG_DIR, parse_settings
from distill.pipeline.stage_settings import STAGES
from distill.pipeline.steps import STEPS, stages_of
from distill.precision import device_in_words, mixed_precision
from distill.training.settings import parse_finetune_settings


def test_defaults_are_the_demo():
    settings = parse_settings([])
    assert settings.images.dataset == "digits"
    assert settings.run_dir.parts == ("runs", "demo")


def test_the_table_of_stages_has_all_of_them_in_order():
    assert tuple(step.name for step in STEPS) == STAGES


@pytest.mark.parametrize("config", sorted(CONFIG_DIR.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_parses(config):
    parse_settings(["--config", config.stem])


def test_command_line_wins_over_the_file(tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text('student_args: "{depths: [1, 3]}"\nstudent_epochs: 7\n')
    settings = parse_settings(["--config", str(config), "--student_epochs", "9"])
    assert settings.student.choice.args == {"depths": [1, 3]}
    assert settings.student.student_epochs == 9


def test_arguments_in_a_file_belong_to_the_teacher_of_the_file():
    settings = parse_settings(["--config", "digits", "--teacher", "org/checkpoint"])
    assert settings.teacher.choice.args == {}
    assert settings.student.choice.args["embed_dim"] == 32
    assert parse_settings(["--student=swin_edge_medium"]).student.choice.args == {}


def test_a_folder_takes_the_photo_config_and_its_own_name(tmp_path):
    settings = parse_settings(["--dataset", str(tmp_path / "birds")])
    assert settings.run_dir.parts == ("runs", "birds")
    assert settings.transforms.horizontal_flip == 0.5
    assert settings.task.image_size == 224


def test_a_training_of_a_run_has_the_settings_of_a_fine_tuning(tmp_path):
    shared = ["--mixup_alpha", "0.4", "--ema_decay", "0.99", "--layer_decay", "0.8", "--report_to", "tensorboard"]
    settings = parse_settings([*shared, "--kd_temperature", "2", "--output_dir", str(tmp_path)])
    training = settings.training(settings.student.choice, 7, 1e-3, tmp_path / "student")
    expected = parse_finetune_settings(["--config", "digits", *shared, "--learning_rate", "0.001", "--num_train_epochs", "7"])
    assert type(training) is type(expected)
    for part in ("mixup_alpha", "rotation_degrees"):
        assert getattr(training.transforms, part) == getattr(expected.transforms, part)
    assert training.optimisation.ema_decay == expected.optimisation.ema_decay == 0.99
    assert training.optimisation.layer_decay == 0.8 and training.trainer.report_to == ["tensorboard"]
    assert (training.trainer.learning_rate, training.trainer.num_train_epochs) == (1e-3, 7)
    assert training.distillation.kd_temperature == 2
    assert training.trainer.output_dir == str(tmp_path / "student")


def test_settings_without_effect_on_the_result_repeat_no_stage():
    usual = parse_settings([]).training_values
    without = ["--dataloader_num_workers", "2", "--report_to", "tensorboard", "--logging_steps", "5", "--use_cpu", "true"]
    assert parse_settings(without).training_values == usual
    for argument in ("--ema_decay=0.9", "--mixup_alpha=0.2", "--weight_decay=0.1", "--bf16=true", "--seed=1"):
        assert parse_settings([argument, "--use_cpu=true"]).training_values != usual


def test_a_run_that_records_its_settings_goes_on_with_its_device(monkeypatch):
    """Arguments of a Trainer set the device of the whole process; those with which others are compared must not change it."""
    monkeypatch.setattr(PartialState, "default_device", torch.device("meta"))  # stands for a GPU
    for arguments in ([], ["--use_cpu", "true"]):
        settings = parse_settings(arguments)
        state = dict(PartialState._shared_state)
        assert state["device"] == torch.device("cpu" if arguments else "meta")
        assert settings.training_values and PartialState._shared_state == state


@pytest.mark.parametrize(
    ("arguments", "launched", "expected"),
    [
        ([], None, True),
        ([], "no", True),
        (["--bf16", "false"], None, False),
        (["--bf16"], "fp16", True),
        (["--fp16", "true"], None, False),
        (["--use_cpu", "true"], None, False),
        ([], "fp16", False),
    ],
)
def test_a_gpu_computes_in_bfloat16_unless_another_precision_was_chosen(monkeypatch, arguments, launched, expected):
    monkeypatch.setattr("distill.training.settings.computes_in_bfloat16", lambda device_type: device_type == "cuda")
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    if launched:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    for parse in (parse_settings, parse_finetune_settings):
        assert parse(arguments).trainer.bf16 is expected


def test_the_precision_that_accelerate_chose_is_told_and_timed(monkeypatch):
    assert device_in_words(parse_settings(["--use_cpu"]).trainer).endswith("threads")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    trainer = parse_settings(["--use_cpu"]).trainer
    assert device_in_words(trainer).endswith("threads, in mixed precision (bf16)")
    with mixed_precision(trainer):
        assert torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    with mixed_precision(parse_settings(["--use_cpu"]).trainer):
        assert not torch.is_autocast_enabled("cpu")


def test_pruning_by_a_table_depends_on_its_content_and_on_the_recipe(tmp_path):
    step = next(own for own in STEPS if own.name == "prune")

    def of(name: str, text: str, *flags: str) -> dict:
        (tmp_path / name).write_text(text)
        table = ["--latency_table", str(tmp_path / name), "--target", "latency_ms=5"]
        return step.settings(parse_settings([*table, *flags]))

    usual = of("table.json", "{}")
    assert of(".copy", "{}") == usual
    assert usual not in (
        of("table.json", "{} "),
        of("table.json", "{}", "--recipe", "fp32"),
        of("table.json", "{}", "--threads", "2"),
    )
    for target, flags, is_measured in (
        ("latency_ms=5", [], True),
        ("latency_ms=5", ["--latency_table", str(tmp_path / "table.json")], False),
        ("latency_ms=5,size_mb=2", ["--latency_table", str(tmp_path / "table.json")], True),
        ("macs=5M", [], False),
    ):
        for name, student in (("prune", []), ("shape", ["--student", "auto"])):
            stages = stages_of(Run(parse_settings([*student, *flags, "--target", target])))
            assert [stage.name for stage in stages if stage.is_measured] == [name] * is_measured
    counted = ["--target", "macs=0.7"]  # and not timed
    assert step.settings(parse_settings([*counted, "--recipe", "fp32"])) == step.settings(parse_settings(counted))


def test_a_file_may_say_how_it_would_be_pruned(tmp_path):
    (tmp_path / "mine.yaml").write_text("target: latency_ms=5\nlatency_table: pi.json\nprune_steps: 3\nrecover_epochs: 7\n")
    assert not parse_settings(["--config", str(tmp_path / "mine.yaml"), "--target", "none"]).prunes


def test_a_run_that_prunes_nothing_has_neither_of_its_stages():
    """No target, or a student that was chosen by its size."""
    every = ["data", "teacher", "student", "edge", "report"]
    for flags in ([], ["--target", "none"], ["--student", "auto", "--target", "macs=5M"]):
        settings = parse_settings(flags)
        own = every if not settings.student.is_auto else ["data", "shape", *every[1:]]
        stages = {stage.name: stage.inputs for stage in stages_of(Run(settings))}
        assert list(stages) == settings.chosen_stages == own and Run(settings).last_model.name == "student"
        assert stages["edge"] == ("data", "student") and stages["report"] == tuple(own[:-1])
        assert stages["student"] == tuple(own[: own.index("student")])
    assert parse_settings(["--target", "none", "--output_dir", "scopes"]).prunes is False  # a value, no flag
    pruned = parse_settings(["--target", "macs=0.7"])
    stages = {stage.name: stage.inputs for stage in stages_of(Run(pruned))}
    assert stages["edge"] == ("data", "recover") and stages["recover"] == ("data", "teacher", "prune")
    assert Run(pruned).last_model.name == "recovered"


def test_options_have_one_spelling():
    with pytest.raises(
        SettingsError, match="unknown setting --student-epochs in the command line; did you mean --student_epochs"
    ):
        parse_settings(["--student-epochs", "3"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--student_epoch", "3"], "unknown setting --student_epoch in the command line; did you mean --student_epochs"),
        (["--student_epochs", "three"], "invalid float value: 'three'"),
        (["--student_epochs", "0"], "--student_epochs must be positive, got 0"),
        (["--teacher_args", "depths"], "--teacher_args must be YAML like"),
        (["--student", ""], "--student must name a preset, a checkpoint folder or a Hub id"),
        (
            ["--learning_rate", "1"],
            "unknown setting --learning_rate in the command line; did you mean --teacher_learning_rate",
        ),
        (["--ema_decay", "0.9", "--save_only_model", "true"], "--save_only_model must be false with --ema_decay"),
        (
            ["--target", "macs=1.5"],
            "--target: macs must be a share above 0 and up to 1, or a number with K, M or G, got '1.5'",
        ),
        (["--scopes", "hidden,widths"], "--scopes: scopes must be of hidden, heads, .* got 'widths'"),
        (["--student", "auto", "--target", "macs=0.7"], "--target must be a number for --student auto, .* got 'macs=0.7x'"),
        (["--stages", "data,shape"], "--stages must name shape only with --student auto, got 'data,shape'"),
        (["--stages", "shape,prune"], "--stages must name shape only with --student auto, got 'shape,prune'"),
        (["--stages", "shape", "--target", "macs=0.7"], "--stages must name shape only with --student auto, got 'shape'"),
        (["--student", "auto"], "--target must be a number for --student auto, such as latency_ms=5, got 'none'"),
        (["--student", "auto", "--target", "macs=5M", "--stages", "prune"], "stages must not name prune with --student auto"),
        (["--student", "auto", "--target", "macs=5M", "--prune_steps", "3"], "must be left out with --student auto, as noth"),
        (["--stages", "data,recover"], "--stages must name recover only with a --target, such as macs=0.7 or "),
        (["--prune_steps=3"], "--prune_steps must come with a --target, such as macs=0.7 or .*, as nothing is pruned, got 3"),
        (["--target", "none", "--recover_epochs", "3"], "--recover_epochs must come with a --target, such as macs=0.7"),
        (["--latency_table", "pi.json"], "--latency_table must come with a --target, such as macs=0.7 or latency=0.7x"),
        (["--target", "non"], "--target: a target must be one of macs=.., .* got 'non'; or give none, to prune nothing"),
        (["--stages", "al"], "--stages must name stages out of data,.*report, or be all, got 'al'; did you mean all"),
        (["--latency_table", "a", "--target", "macs=0.7"], "--latency_table must come with a target of latency or latency_ms"),
        (["--criterion", "random"], "--criterion must be one of taylor, magnitude, hessian"),
        (["--test_share", "0"], "--test_share must lie between 0 and 0.5"),
        (["--stages", "teacher,oven"], "--stages must name stages out of data,shape,teacher,student"),
        (["--recipe", "int7"], "--recipe must be one of fp32, fp16, int8"),
        (["--config", "nowhere"], "--config must be a YAML file or one of digits, photos"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(SettingsError, match=message):
        parse_settings(arguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("studnt_epochs: 3", "unknown setting --studnt_epochs in .*mine.yaml; did you mean --student_epochs"),
        ("student_epochs: many", "invalid float value"),
        ("- a\n- b", "must hold `key: value` lines, got list"),
        ("a: [", "is not valid YAML"),
        ("prune_batches: -4", "--prune_batches must be positive"),
    ],
)
def test_bad_files_are_named(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(SettingsError, match=message):
        parse_settings(["--config", str(tmp_path / "mine.yaml")])


def test_help_begins_with_the_run_and_names_what_can_be_set(capsys):
    def shown(*argv: str) -> str:
        with pytest.raises(SystemExit) as stop:
            parse_settings(list(argv))
        assert stop.value.code == 0
        return capsys.readouterr().out

    text = shown("--help_all")
    headings = [
        "\nrun:",
        '\nstage "teacher":',
        '\nstage "report":',
        "\nimages:",
        "\naugmentation:",
        "\narguments of transformers",
    ]
    assert [text.index(heading) for heading in headings] == sorted(text.index(heading) for heading in headings)
    assert "--num_train_epochs" not in text and "--mask_share" not in text and "--per_device_train_batch_size" in text
    assert shown("--help-all") == text
    short = shown("--help")
    assert len(short.splitlines()) < 160 < len(text.splitlines())
    assert "--teacher_epochs" in short and "--adam_beta2" not in short and "--help_all" in short
    assert short == shown("-h")


def test_help_shows_the_values_in_force(tmp_path, capsys):
    def value(option: str, *argv: str) -> str:
        with pytest.raises(SystemExit):
            parse_settings([*argv, "--help"])
        lines = capsys.readouterr().out.splitlines()
        start = lines.index(f"  --{option} VALUE") + 1
        described = " ".join(line.strip() for line in lines[start : start + 6]).split(" --")[0]
        assert len(described) > 20  # it says what the option is
        return re.findall(r"\[([^\]]*)\]", described)[0]

    assert value("teacher_epochs") == "40.0"  # of digits.yaml
    assert value("teacher_epochs", "--dataset", "my_photos") == "30.0"  # of photos.yaml
    assert value("teacher_epochs", "--teacher_epochs", "7") == "7.0"
    (tmp_path / "mine.yaml").write_text("teacher_epochs: 3")
    assert value("teacher_epochs", "--config", str(tmp_path / "mine.yaml")) == "3.0"


def test_the_recorded_command_has_no_paths_and_no_tokens(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "mine.yaml").write_text("teacher_epochs: 3")
    typed = ["--dataset", str(tmp_path / "photos"), f"--config={tmp_path / 'mine.yaml'}", "--hub_token", "hf_secret"]
    typed += ["--teacher", "org/model", "--more_teachers", f"{tmp_path / 'a'},org/other", "--student_args", "{depths: [1, 2]}"]
    command = parse_settings(typed).command
    assert command == (
        "python distill/run.py --dataset photos --config=mine.yaml --hub_token ... --teacher org/model "
        "--more_teachers a,org/other --student_args '{depths: [1, 2]}'"
    )
    assert "holiday" in parse_settings([*typed, "--dataset_name", "holiday"]).command.split("--config")[0]
