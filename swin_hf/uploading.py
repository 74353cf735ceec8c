"""Folders that are prepared for the Hub, and their upload in one commit."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi
from PIL import Image, ImageOps

from .errors import in_one_line
from .model_card import PublishError

EXAMPLES = "examples"  # folder of a repository
MOST_EXAMPLES, LONGEST_SIDE = 12, 1024
ENDINGS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF"}  # of examples
# What we write and a later upload may leave out: the photographs of people who no longer want to be shown, old code.
REPLACED = {"model": [f"{EXAMPLES}/*"], "space": [f"{EXAMPLES}/*", "swin_hf/*", "edge/*"]}


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What is to be uploaded: the files of a folder that was prepared from the folder `source`.

    repo_type: model or space, as the Hub calls them. pipeline: the Hub's name of the model's task.
    """

    repo_id: str
    source: Path
    folder: Path
    repo_type: str = "model"
    pipeline: str | None = None

    @property
    def files(self) -> dict[str, int]:
        """Size in bytes of every file, by its path in the repository."""
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in paths}

    @property
    def left_out(self) -> list[str]:
        """Names of the files and folders of a model's `source` that are not uploaded."""
        if self.repo_type != "model":
            return []
        prepared = {path.name for path in self.folder.iterdir()}
        return sorted(path.name for path in self.source.iterdir() if path.name not in prepared)

    def __str__(self) -> str:
        lines = [f"{size:>12,}  {name}" for name, size in self.files.items()]
        left_out = [f"left out: {', '.join(self.left_out)}"] if self.left_out else []
        return "\n".join([*lines, f"{sum(self.files.values()):>12,}  bytes in all", *left_out])


def upload(
    publication: Publication, private: bool | None = None, revision: str | None = None, message: str | None = None
) -> CommitInfo:
    """Upload what was prepared to the Hub, in one commit; without changes there is no new one.

    Examples that are no longer among the files are removed there, and so is old code of a Space.

    Access is huggingface_hub's: `hf auth login` or `HF_TOKEN`.

    private: whether a new repository is private; an existing one stays as it is. None: the default of the organisation.
    revision: branch to upload to, made from main if it is new.

    Raises:
        huggingface_hub.errors.HfHubHTTPError: the Hub refuses.
    """
    hub = HfApi(library_name="swin-hf")
    kind = publication.repo_type
    sdk = "gradio" if kind == "space" else None
    hub.create_repo(publication.repo_id, private=private, repo_type=kind, space_sdk=sdk, exist_ok=True)
    if revision is not None:
        hub.create_branch(publication.repo_id, branch=revision, repo_type=kind, exist_ok=True)
    return hub.upload_folder(
        repo_id=publication.repo_id,
        repo_type=kind,
        folder_path=publication.folder,
        revision=revision,
        delete_patterns=REPLACED[kind],
        commit_message=message or f"Upload {publication.source.resolve().name} with swin-hf",
    )


def is_private(repo_id: str) -> bool:
    """Whether a model on the Hub is private.

    Raises:
        huggingface_hub.errors.HfHubHTTPError: the Hub refuses to say.
    """
    return bool(HfApi(library_name="swin-hf").model_info(repo_id).private)


def copy_examples(source: Path, folder: Path) -> list[str]:
    """Copy images to try, the first 12, into a folder of a repository: small, on white where they are transparent, and without
    what their files say beside the picture; returns their names.

    Raises:
        PublishError: there is no image, or one cannot be read.
    """
    files = sorted(file for file in source.iterdir() if is_example(file)) if source.is_dir() else []
    if not files:
        kinds = ", ".join(sorted(ENDINGS))
        raise PublishError(f"--examples must be a folder of images ({kinds}), got {'none in ' * source.is_dir()}{source}")
    folder.mkdir(parents=True)
    names = []
    for number, file in enumerate(files[:MOST_EXAMPLES]):
        try:
            with Image.open(file, formats=[*ENDINGS.values()]) as image:
                upright = ImageOps.exif_transpose(image).convert("RGBA")
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise PublishError(f"{file} cannot be read as an image: {in_one_line(error)}") from error
        upright.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        picture = Image.new("RGB", upright.size, "white")  # which has nothing but the picture
        picture.paste(upright, mask=upright.getchannel("A"))
        names.append(f"{number:02}.jpg")
        picture.save(folder / names[-1], quality=90)
    return names


def is_example(file: Path) -> bool:
    return file.suffix.lower() in ENDINGS and not file.name.startswith(".") and file.is_file()
