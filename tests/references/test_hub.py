"""Weights of the hub, from a server of ours that answers as the hub does: pinned, checked, and refused in one line."""

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save as save_safetensors

from tl_dist.config import ModelConfig, registry, rules
from tl_dist.config import file as config_file
from tl_dist.config.data import STRETCHED
from tl_dist.config.training import ScalingConfig
from tl_dist.launcher import train
from tl_dist.models import weights
from tl_dist.models.weights import descriptions
from tl_dist.refusal import Refusal

COMMIT = "0123456789abcdef0123456789abcdef01234567"
GONE = {"gated": (403, "GatedRepo"), "none": (401, "RepoNotFound"), "down": (503, "")}


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers /OWNER/NAME/resolve/REVISION/FILE with headers of the hub."""

    files: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[str]] = []

    def answer(self, *, body: bool) -> None:
        _, _, name, _, revision, file = self.path.split("/", 5)
        type(self).asked.append(f"{self.command} {name} {file}")
        status, error = GONE.get(name, (200, ""))
        if status == 200 and revision not in ("main", "v1", COMMIT):
            status, error = 404, "RevisionNotFound"
        elif status == 200 and file not in self.files:
            status, error = 404, "EntryNotFound"
        data = self.files.get(file, b"") if status == 200 else b""
        self.send_response(status)
        if error:
            self.send_header("X-Error-Code", error)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A hub with timm's ViT-S at random, as timm pushes it, and an empty cache."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    torch.manual_seed(0)
    state = timm.create_model("vit_small_patch16_224", pretrained=False).state_dict()
    described = {"architecture": "vit_small_patch16_224", "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    Hub.files = {"model.safetensors": save_safetensors(state), "config.json": json.dumps(described).encode()}
    Hub.asked = []
    yield tmp_path / "cache"
    server.shutdown()
    server.server_close()


def test_a_repository_is_fetched_once_and_pinned(cache: Path) -> None:
    file = weights.convert("hf://timm/vit", "vit_small", cache=cache)
    assert file is not None and file.revision == COMMIT
    network = registry.backbone("vit_small").build((32, 32, 3))
    weights.load(network, file)
    torch.manual_seed(0)
    theirs = timm.create_model("vit_small_patch16_224", pretrained=False, img_size=224).eval()
    kernel = theirs.blocks[3].mlp.fc1.weight.detach().numpy().T
    np.testing.assert_array_equal(network.get_layer("block3_mlp1").get_weights()[0], kernel)
    num_asked = len(Hub.asked)
    assert weights.resolve("hf://timm/vit", "vit_small", cache=cache) == file
    assert len(Hub.asked) == num_asked


def test_a_revision_and_a_file_may_be_named_and_a_digest_is_checked(cache: Path) -> None:
    torch.save(timm.create_model("vit_small_patch16_224", pretrained=False).state_dict(), cache.parent / "x.bin")
    Hub.files["pytorch_model.bin"] = (cache.parent / "x.bin").read_bytes()
    file = weights.convert("hf://timm/vit@v1/pytorch_model.bin", "vit_small", cache=cache)
    assert file is not None and "GET vit model.safetensors" not in Hub.asked
    with pytest.raises(Refusal, match=r"model\.weights_sha256"):
        weights.convert("hf://timm/vit", "vit_small", sha256="0" * 64, cache=cache)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("hf://x/gated", "are gated"),
        ("hf://x/none", "are in no public repository"),
        ("hf://x/down", "cannot be fetched"),
        ("hf://x/vit@v9", "have no revision 'v9'"),
        ("hf://x/vit/other.safetensors", "have no file other.safetensors. Fix: name the file"),
    ],
)
def test_what_cannot_be_had_is_one_line(spec: str, words: str, cache: Path) -> None:
    with pytest.raises(Refusal) as error:
        weights.convert(spec, "vit_small", cache=cache)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_an_unreachable_hub_is_one_line(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    with pytest.raises(Refusal, match="where there is internet"):
        weights.convert("hf://x/vit", "vit_small", cache=cache)


def test_half_a_file_is_not_taken(cache: Path) -> None:
    whole = Hub.files["model.safetensors"]
    Hub.files["model.safetensors"] = whole[: len(whole) // 2]
    with pytest.raises(Refusal, match=r"model\.safetensors cannot be read"):
        weights.convert("hf://x/vit", "vit_small", cache=cache)


def test_weights_of_images_scaled_otherwise_are_refused_with_the_key_that_agrees(cache: Path) -> None:
    """By timm's description and by transformers'; also when the file is in the cache; also of a local file."""
    Hub.files["preprocessor_config.json"] = json.dumps(
        {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "do_normalize": True}
    ).encode()
    line = "write 'preprocessing: {mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}' below 'model:'"
    for _ in range(2):
        with pytest.raises(Refusal) as error:
            weights.convert("hf://x/vit", "vit_small", cache=cache)
        assert line in str(error.value)
    agrees = ModelConfig(backbone="vit_small", preprocessing="torch").network(None)
    file = weights.convert("hf://x/vit", agrees, cache=cache)
    assert file is not None
    assert weights.convert("hf://x/vit", "deit_small", cache=cache) is not None  # torch's, too
    (path,) = (cache / "hub").rglob("model.safetensors")
    with pytest.raises(Refusal, match=r"0\.485"):
        weights.convert(str(path), "vit_small", cache=cache)
    assert descriptions.beside(Path("nowhere/x.safetensors")) is None


def test_a_config_takes_over_a_description_alone_and_later_needs_no_hub(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    described = {"mean": [0.4] * 3, "std": [0.3] * 3, "crop_pct": 0.9, "interpolation": "bicubic"}
    Hub.files["config.json"] = json.dumps({"pretrained_cfg": described}).encode()
    text = "steps: 1\ndata: {name: digits}\nmodel: {backbone: vit_small, weights: hf://timm/vit}\n"
    (tmp_path / "x.yaml").write_text(f"{text}optimizer: {{learning_rate: 0.1}}\n")
    request = train.Request(tmp_path / "x.yaml")
    assert request.load(imports=False).data.square == STRETCHED and not Hub.asked
    cfg = request.load()
    assert cfg.data.square == (0.9, "bicubic") and cfg.model.preprocessing == ScalingConfig(
        mean=(0.4,) * 3, std=(0.3,) * 3
    )
    assert "GET vit config.json" in Hub.asked and "GET vit model.safetensors" not in Hub.asked
    file = weights.convert(cfg.model.weights, cfg.network)
    assert file is not None and file.images is not None and file.images["interpolation"] == "bicubic"
    Hub.files, Hub.asked = {}, []
    assert request.load() == request.load(imports=False) == cfg and not Hub.asked


@pytest.mark.parametrize(
    ("spec", "known"),
    [
        ("hf://timm/vit_small.augreg@main", True),
        ("hf://timm/vit/sub/pytorch_model.bin", True),
        ("hf://timm", False),
        ("hf://timm/vit/../../x.bin", False),
        ("hf://timm/vit/model.onnx", False),
    ],
)
def test_how_a_repository_is_written(spec: str, known: bool, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(
        f"steps: 1\ndata: {{name: digits}}\nmodel: {{backbone: vit_small, weights: {spec}}}\noptimizer: {{name: sgd}}\n"
    )
    if known:
        cfg = config_file.load(tmp_path / "x.yaml", ["optimizer.learning_rate=0.1"])
        assert cfg.model.weights == spec and not list(rules.broken(cfg))
        return
    with pytest.raises(Refusal, match="not a known source of weights"):
        config_file.load(tmp_path / "x.yaml", ["optimizer.learning_rate=0.1"])
