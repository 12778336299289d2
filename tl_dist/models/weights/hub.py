"""Weights of a repository of the Hugging Face hub, at a pinned commit, and how their authors scaled images."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tl_dist.config.rules.model import HUB
from tl_dist.files import packages
from tl_dist.models.backbones import IMAGENET, Preprocessing, Scaling
from tl_dist.refusal import ExitCode, Refusal

_FILE = "model.safetensors"  # of timm's repositories, and of transformers'
_MEANS = {"preprocessor_config.json": ("image_mean", "image_std"), "config.json": ("mean", "std")}
"""files of transformers and timm beside the weights, and their keys; timm's are below `pretrained_cfg`"""
_KNOWN = {"torch": IMAGENET, "tf": Scaling((0.5,) * 3, (0.5,) * 3), "inside": IMAGENET}


def fetch(spec: str, cache: Path) -> tuple[Path, str]:
    """Download the file of `hf://OWNER/NAME[@REVISION][/FILE]`, and what lies beside it; return it and its commit.

    Refuses (64) without huggingface_hub, and (65) a repository or file that is not there, gated or out of reach.
    """
    packages.require(("huggingface_hub",), extra="hub", what="weights of hf://")
    import huggingface_hub as hub
    from huggingface_hub import errors

    match = HUB.fullmatch(spec)
    assert match is not None  # a rule of the config
    repository, revision, file = match[1], match[2], match[3] or _FILE
    try:
        commit = hub.get_hf_file_metadata(hub.hf_hub_url(repository, file, revision=revision), timeout=30).commit_hash
        folder = cache / "hub" / repository.replace("/", "--") / str(commit)
        path = Path(hub.hf_hub_download(repository, file, revision=commit, local_dir=folder))
        for name in _MEANS:
            with suppress(errors.EntryNotFoundError):
                hub.hf_hub_download(repository, name, revision=commit, local_dir=folder)
    except errors.GatedRepoError as error:
        why, fix = "are gated", f"accept the terms of {repository} on its page, and run 'hf auth login'"
        raise _refused(spec, why, fix) from error
    except errors.RepositoryNotFoundError as error:
        raise _refused(spec, "are in no public repository", "correct its name, or run 'hf auth login'") from error
    except errors.RevisionNotFoundError as error:
        raise _refused(spec, f"have no revision '{revision}'", "write that of a commit, a tag or a branch") from error
    except errors.EntryNotFoundError as error:
        fix = "name the file: hf://OWNER/NAME/FILE, of one .safetensors, .bin or .pth file that holds all weights"
        raise _refused(spec, f"have no file {file}", fix) from error
    except Exception as error:  # of the HTTP client, which is another in each version of huggingface_hub
        fix = "run 'tl-dist prepare CONFIG' where there is internet, with the same XDG_CACHE_HOME; or bring the file"
        raise _refused(spec, f"cannot be fetched ({type(error).__name__}: {str(error)[:200]})", fix) from error
    return path, str(commit)


def scaling_beside(file: Path) -> Scaling | None:
    """Return how images were scaled in training, by the descriptions of timm or transformers in the file's folder."""
    for name, keys in _MEANS.items():
        with suppress(OSError, ValueError, TypeError, RecursionError):
            described: Mapping[str, Any] = json.loads((file.parent / name).read_bytes())
            described = described.get("pretrained_cfg", described)
            mean, std = (tuple(float(value) for value in described.get(key, ())) for key in keys)
            if len(mean) == len(std) == 3:
                return Scaling(mean, std)
    return None


def refuse_other_scaling(spec: str, name: str, ours: Preprocessing, theirs: Scaling | None) -> None:
    """Refuse (64) weights whose authors scaled images otherwise than the network `name` has them scaled."""
    own = ours if isinstance(ours, Scaling) else _KNOWN.get(ours)
    if theirs is None or own is None:
        return
    pairs = zip((*theirs.mean, *theirs.std), (*own.mean, *own.std), strict=True)
    if any(abs(a - b) > 1e-3 for a, b in pairs):
        what = f"the weights '{spec}' were trained on images of mean {list(theirs.mean)} and std {list(theirs.std)}, "
        what += f"but those of {name} get mean {list(own.mean)} and std {list(own.std)}."
        fix = f"write 'preprocessing: {{mean: {list(theirs.mean)}, std: {list(theirs.std)}}}' below 'model:'."
        raise Refusal(what, fix=fix, code=ExitCode.USAGE)


def _refused(spec: str, why: str, fix: str) -> Refusal:
    return Refusal(f"the weights '{spec}' {why}.", fix=f"{fix}.", code=ExitCode.DATA)
