"""The folder of ``--format web`` and what it needs; a browser drives it in tests/agents/test_web_page.py."""

import base64
import gzip
import hashlib
import io
import os
import re
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from wm_gym.cli.main import main
from wm_gym.errors import ExportError
from wm_gym.export import web
from wm_gym.export.folder import ExportSettings, export_parts
from wm_gym.export.parts import model_parts
from wm_gym.frames import tensor_to_frames

FILES = {
    "ort.wasm.bundle.min.mjs": b"/*!\n * ONNX Runtime Web v1.2.3\n */",
    "ort.webgpu.bundle.min.mjs": b"of the other kind",
    "ort-wasm-simd-threaded.wasm": b"\0asm" * 100,
    "ort-wasm-simd-threaded.asyncify.wasm": b"\0asm" * 200,
}


@pytest.fixture
def runtime(tmp_path):
    """What stands for ONNX Runtime Web where no browser runs it."""
    folder = tmp_path / "dist"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def only_npm(tmp_path, monkeypatch):
    """Lets a shell script be all that there is of programs, as ``npm``; without one there is none."""
    if os.name == "nt":
        pytest.skip("a shell script is no program on Windows")
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def put(script: str) -> None:
        (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "npm").chmod(0o755)

    return put


def archive(tmp_path):
    """A package as npm gives it."""
    path = tmp_path / "package.tgz"
    with tarfile.open(path, "w:gz") as packed:
        for name, content in FILES.items():
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    return path


def test_the_folder_has_all_that_the_page_asks_for(tiny_model, runtime, tmp_path):
    settings = ExportSettings(formats=("web",), repeats=1, web_runtime=runtime)
    parts = [part for part in model_parts(tiny_model) if part.name in {"encoder", "step"}]  # each takes seconds
    result = export_parts(parts, tiny_model, tmp_path / "export", settings, progress=False)
    out = result.path
    assert {file["name"] for file in result.manifest["files"]} == {"step.onnx"}  # the page encodes nothing
    assert result.manifest["page"] == {"start_states": 16, "features": tiny_model.feature_dim, "runtime": "1.2.3"}
    assert "on any static host" in (out / "README.md").read_text()
    for name, content in FILES.items():
        kept = out / "runtime" / name.replace(".mjs", ".js")
        assert (
            kept.read_bytes() if kept.exists() else gzip.decompress((out / f"runtime/{name}.gzip").read_bytes())
        ) == (content)
    assert "Copyright (c) Microsoft Corporation" in (out / "runtime" / "LICENSE").read_text()
    states = tiny_model.start_states
    with torch.no_grad():
        expected = torch.cat([part.flatten(1) for part in (*states, tiny_model.features(states))], dim=1)
        pictures = tensor_to_frames(tiny_model.decode(states))
    rows = np.frombuffer((out / "start_states.bin").read_bytes(), "<f4")
    np.testing.assert_array_equal(rows.reshape(16, -1), expected)
    np.testing.assert_array_equal(Image.open(out / "start-states" / "7.png"), pictures[7])
    pages = {file: file.read_text() for file in out.rglob("*") if file.suffix in {".html", ".js", ".css"}}
    assert len(pages) >= 7
    for file, text in pages.items():
        assert "//" not in re.sub(r"^\s*//.*$|\s// .*$", "", text, flags=re.MULTILINE), f"{file} names another host"
        for name in re.findall(r'(?:href|src|from|import)[ =(]+"([\w./-]+)"', text):
            assert (file.parent / name).is_file(), f"{file} asks for {name}"


def test_an_export_of_another_format_has_no_page(tiny_model, tmp_path):
    settings = ExportSettings(formats=("torchscript",), repeats=1)
    result = export_parts(model_parts(tiny_model)[3:4], tiny_model, tmp_path / "export", settings, progress=False)
    assert "page" not in result.manifest
    assert not (result.path / "index.html").exists()


def test_npm_gives_the_runtime(only_npm, tmp_path, monkeypatch):
    packed = archive(tmp_path)
    digest = base64.b64encode(hashlib.sha512(packed.read_bytes()).digest()).decode()
    monkeypatch.setattr(web, "_RUNTIME_SHA512", digest)
    only_npm(f'[ "$1 $2" = "pack onnxruntime-web@{web.RUNTIME_VERSION}" ] && /bin/cp {packed} it.tgz')
    assert web.read_runtime(None) == FILES


class TestRefusals:
    """One sentence each, and nothing is written."""

    def refused(self, capsys, tmp_path, *arguments):
        out = tmp_path / "export"
        command = ["export", "--model", "bundled", "--out", str(out), "--device", "cpu", "--quiet"]
        assert main([*command, *arguments]) == 2
        assert not out.exists()
        told = capsys.readouterr().err.strip()
        assert "\n" not in told
        return told

    def test_no_npm(self, only_npm, capsys, tmp_path):
        told = self.refused(capsys, tmp_path, "--format", "web")
        assert "there is no npm here to get it with; install npm, or give the folder dist of the npm package" in told

    def test_npm_fails(self, only_npm, capsys, tmp_path):
        only_npm("echo 'npm error code ENOTFOUND' >&2; exit 1")
        told = self.refused(capsys, tmp_path, "--format", "web")
        assert f"npm did not give onnxruntime-web@{web.RUNTIME_VERSION} (code ENOTFOUND); see to it that npm" in told

    def test_another_package(self, only_npm, capsys, tmp_path):
        only_npm(f"/bin/cp {archive(tmp_path)} it.tgz")
        told = self.refused(capsys, tmp_path, "--format", "web")
        assert "is another package: its SHA-512 is not the known one" in told

    @pytest.mark.parametrize("missing", FILES)
    def test_a_folder_without_the_files(self, missing, runtime, capsys, tmp_path):
        (runtime / missing).unlink()
        told = self.refused(capsys, tmp_path, "--format", "web", "--web-runtime", str(runtime))
        assert f"--web-runtime {str(runtime)!r} has no file {missing!r}; give the folder dist" in told

    def test_formats_that_do_not_go_together(self, runtime, capsys, tmp_path):
        given = ["--web-runtime", str(runtime)]
        told = self.refused(capsys, tmp_path, "--format", "web", "--format", "onnx", *given)
        assert "--format web makes a folder of its own" in told
        assert "--web-runtime belongs to --format web" in self.refused(capsys, tmp_path, *given)

    def test_a_model_without_start_states(self, tiny_model, runtime, tmp_path):
        tiny_model.start_states = None
        settings = ExportSettings(formats=("web",), web_runtime=runtime)
        with pytest.raises(ExportError, match="no start states for the page to dream from; train it with"):
            export_parts(model_parts(tiny_model), tiny_model, tmp_path / "export", settings, progress=False)
        assert not (tmp_path / "export").exists()
