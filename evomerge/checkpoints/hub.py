"""From a folder or a Hub id to a local folder."""

from pathlib import Path

from evomerge.errors import CheckpointError

_PATTERNS = [
    "*.safetensors",
    "*.json",
    "*.jinja",
    "*.txt",
    "*.model",
    "*.tiktoken",
    "LICENSE*",
]
# Repositories also carry other formats and copies of the weights in subfolders.
_IGNORED = ["*/*", "consolidated*", "training_args*", "*.gguf"]


def local_folder(
    path: str | Path,
    *,
    revision: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> Path:
    """The absolute folder of a model; what is no existing folder is downloaded from the Hub.

    Pickled weights and Python files are only downloaded when their flag is set.

    Raises:
        CheckpointError: There is neither such a folder nor such a repository.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder.resolve()
    text = str(path)
    if folder.exists() or text.startswith(("/", ".", "~")) or text.count("/") > 1:
        raise CheckpointError(
            f"a model must be a folder or a Hub id, but {text} is no existing folder: "
            "correct the path"
        )

    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = list(_PATTERNS)
    if allow_pickle:
        patterns.append("*.bin")
    if trust_remote_code:
        patterns.append("*.py")
    try:
        downloaded = huggingface_hub.snapshot_download(
            text, revision=revision, allow_patterns=patterns, ignore_patterns=_IGNORED
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"a model must be a folder or a Hub id, but {text} is no existing folder and the Hub "
            f"answers: {reason.rstrip('.')}: correct the path, or check the network and `hf auth "
            "login`"
        ) from error
    return Path(downloaded).resolve()
