"""The teachers of a training: which are asked, and what of them is learned."""

from pathlib import Path

from transformers import PreTrainedModel

from distill.compress.teachers import Teachers
from distill.errors import SettingsError
from distill.training.settings import FinetuneSettings
from distill.training.tasks.distillation import Distillation, compare_features
from distill.training.tasks.task import Objective
from distill.training.teacher_cache import TeacherCache
from distill.training.trainer import LEARNED_FILE
from swin_hf.errors import in_one_line


def load_teachers(settings: FinetuneSettings, class_names: list[str]) -> Teachers | None:
    """The teachers that are asked for; with a loss of the logits, they must know the classes.

    Raises:
        TeacherError: one cannot be a teacher for these classes.
    """
    names = class_names if settings.distillation.logits_weight else None
    teachers = [settings.kind.load_teacher(name, names) for name in settings.teachers]
    return Teachers(teachers) if teachers else None


def taught(
    objective: Objective,
    model: PreTrainedModel,
    teacher: Teachers | TeacherCache,
    settings: FinetuneSettings,
    checkpoint: str | None = None,
) -> Distillation:
    """An objective together with what teachers say of the same images.

    checkpoint: from which the training resumes; it goes on comparing feature maps, or without.

    Raises:
        FeatureError: feature maps must be compared, and one of the models has none.
        SettingsError: feature maps must be compared, or cannot be, unlike before the training was interrupted.
    """
    own, features, why_not = settings.distillation, None, ""
    compared = None if checkpoint is None else (Path(checkpoint) / LEARNED_FILE).is_file()
    if own.may_compare_maps:
        why_not = why_no_maps(settings, teacher)
    if own.must_compare_maps or (own.may_compare_maps and not why_not and compared is not False):
        try:
            features = compare_features(own.maps_loss, model, objective.normalise, teacher, settings.task.image_size)
        except Exception as error:  # other people's models raise anything where they give no maps
            if own.must_compare_maps:
                raise
            why_not = in_one_line(error)
    if why_not and settings.trainer.process_index == 0:
        print(f"feature maps are not compared: {why_not}", flush=True)
    if compared is not None and compared != (features is not None):
        so_far = f"which compared {'feature maps' if compared else 'none'}"
        raise SettingsError(f"--feature_loss must be as in the training that is resumed, {so_far}; or start anew")
    if isinstance(teacher, Teachers):
        teacher.hasten(settings.trainer.device)
    return Distillation(objective, teacher, own, features)


def why_no_maps(settings: FinetuneSettings, teacher: Teachers | TeacherCache) -> str:
    """Why feature maps are not compared where that is left to us, whatever the models are; empty if they can be."""
    if isinstance(teacher, TeacherCache):
        return "a cache of a teacher has none"
    if settings.splits_weights:
        return "FSDP or DeepSpeed split the weights"
    return "--save_only_model leaves out what belongs to them" if settings.trainer.save_only_model else ""
