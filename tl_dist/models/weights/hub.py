"""Weights of a repository of the Hugging Face hub, at a pinned commit."""

from contextlib import suppress
from pathlib import Path

from tl_dist.config.rules.model import HUB
from tl_dist.files import packages
from tl_dist.models.weights import descriptions
from tl_dist.refusal import ExitCode, Refusal

_FILE = "model.safetensors"  # of timm's repositories, and of transformers'


def fetch(spec: str, cache: Path, *, described_only: bool = False) -> tuple[Path, str]:
    """Download the file of `hf://OWNER/NAME[@REVISION][/FILE]` and its description; return its path and commit.

    With `described_only`, the file itself is left out.
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
        if not described_only:
            hub.hf_hub_download(repository, file, revision=commit, local_dir=folder)
        for name in descriptions.FILES:
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
    return folder / file, str(commit)


def _refused(spec: str, why: str, fix: str) -> Refusal:
    return Refusal(f"the weights '{spec}' {why}.", fix=f"{fix}.", code=ExitCode.DATA)
