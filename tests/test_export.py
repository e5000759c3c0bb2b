import base64
import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec

import pytest
import torch
from tokenizers import Tokenizer
from typer.testing import CliRunner

from budgetlm.cli import app
from budgetlm.data.config import DataConfig
from budgetlm.errors import ConfigError, StudyError
from budgetlm.export import Provenance, card, export, push, told_source
from budgetlm.model.export import save_model
from budgetlm.model.gguf import save_gguf
from budgetlm.model.transformer import build
from budgetlm.receipts import Receipt
from tests.conftest import record, tiny_model
from tests.serving import serving

transformers = pytest.importorskip("transformers")
SHAPES = {
    "plain": {},
    "tied": {"tie_embeddings": True, "norm_embedding": False},
    "untied": {"tie_embeddings": False},
    "grouped": {"kv_groups": 2, "width": 64},
    "normed": {"norm_embedding": True, "tie_embeddings": True},
}


@pytest.fixture
def saved(tmp_path, tokens):
    """Writes a model as a final does, and returns its folder and the model."""

    def save(**changes):
        network = build(tiny_model(vocab_size=tokens.facts.vocab_size, **changes), seed=1).eval()
        folder = tmp_path / "model"
        folder.mkdir(exist_ok=True)
        save_model(folder, network, tokens.tokenizer_file, tokens.facts.end_of_text)
        return folder, network

    return save


@pytest.mark.parametrize("shape", SHAPES)
def test_an_exported_folder_computes_and_writes_the_same_in_transformers(saved, tmp_path, shape):
    folder, network = saved(**SHAPES[shape])
    out = export(folder, tmp_path / "out", "hf", None)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    ids = torch.tensor([tokenizer("the tree sees")["input_ids"]])
    with torch.no_grad():
        assert (theirs(ids).logits - network(ids)).abs().max() < 1e-5
    from budgetlm.model.generate import generate

    ours = list(generate(network, ids[0].tolist(), 12, temperature=0.0))
    made = theirs.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert made[0, ids.shape[1] :].tolist() == ours


def test_the_pipeline_of_transformers_takes_several_texts_at_once(saved, tmp_path):
    out = export(saved()[0], tmp_path / "out", "hf", None)
    write = transformers.pipeline("text-generation", model=str(out))
    said = write(["the tree", "the river finds"], max_new_tokens=4, batch_size=2)
    assert [each[0]["generated_text"].startswith("the") for each in said] == [True, True]


@pytest.mark.skipif(
    find_spec("gguf") is None or find_spec("accelerate") is None,
    reason="gguf, or accelerate, which reads it, is not installed",
)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shape", SHAPES)
def test_a_gguf_file_computes_the_same_when_it_is_read_again(saved, tmp_path, tokens, shape):
    folder, network = saved(**SHAPES[shape])
    export(folder, tmp_path / "model.gguf", "gguf", None)
    shape = transformers.AutoConfig.from_pretrained(folder)  # its reader takes every head to be 128 wide
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", config=shape)
    ids = torch.tensor([Tokenizer.from_file(str(tokens.tokenizer_file)).encode("the tree sees").ids])
    with torch.no_grad():
        assert (theirs(ids).logits - network(ids)).abs().max() < 1e-5


def test_the_card_says_where_a_model_comes_from():
    receipt = Receipt("demo", "final-trial0007-80s-seed0", 7, 80.0, 1.3, 1.2, 1.4, 1.35, True)
    text = card(Provenance("demo", record(7, 0, 80.0, 1.35), receipt, "stdlib (fingerprint abc)", "a GPU"), "qwen3")
    assert text.startswith("---\nlibrary_name: transformers\npipeline_tag: text-generation\n")
    for part in ("1.3500 bits per byte", "stdlib (fingerprint abc)", "1.2000 to 1.4000); it came out inside", "a GPU"):
        assert part in text


def test_a_card_says_that_given_weights_may_have_read_what_the_model_is_measured_on_and_not_where_they_lay():
    begun = record(7, 0, 80.0, 1.35, config={"init": "/home/me/secret/init"})
    text = card(Provenance("demo", begun, None, "stdlib (fingerprint abc)", "a GPU"), "qwen3")
    assert "begun from given weights; what these had read is not known here" in text
    assert "secret" not in text
    fresh = card(Provenance("demo", record(7, 0, 80.0, 1.35), None, "stdlib (fingerprint abc)", "a GPU"), "qwen3")
    assert "given weights" not in fresh


@pytest.mark.parametrize(("source", "told"), [("stdlib", True), ("hf:a/b:1 + site:2", True), ("/home/me/texts", False)])
def test_the_card_names_no_path(source, told):
    assert (told_source(DataConfig(source=source)) == source) is told


def test_what_is_there_is_not_written_over_and_what_makes_no_sense_is_a_line(saved, tmp_path):
    folder, _ = saved()
    with pytest.raises(ConfigError, match="is there already"):
        export(folder, folder, "hf", None)
    with pytest.raises(ConfigError, match="no format 'onnx'. Use hf or gguf"):
        export(folder, tmp_path / "out", "onnx", None)
    with pytest.raises(StudyError, match="does not hold a model"):
        export(tmp_path / "nothing", tmp_path / "out", "hf", None)
    assert not (tmp_path / "out").exists()
    (folder / "config.json").write_text(json.dumps({"model_type": "modernbert"}))
    with pytest.raises(StudyError, match="modernbert, which has no form in GGUF"):
        export(folder, tmp_path / "out.gguf", "gguf", None)
    (folder / "config.json").write_text(json.dumps({"model_type": "budgetlm"}))
    with pytest.raises(StudyError, match="no other program has that architecture"):
        export(folder, tmp_path / "out", "hf", None)
    done = CliRunner().invoke(app, ["export", str(tmp_path / "x"), "--to", "gguf", "--push", "a/b"])
    assert isinstance(done.exception, ConfigError)


def test_a_missing_package_is_a_line(saved, tmp_path, monkeypatch):
    folder, network = saved()
    monkeypatch.setattr("budgetlm.model.gguf.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'budgetlm\[gguf\]'"):
        save_gguf(tmp_path / "x.gguf", network, folder / "tokenizer.json", 0, "x")


def test_a_hub_that_refuses_is_a_line_and_the_folder_stays(saved, tmp_path, monkeypatch):
    asked = []

    class Hub(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            self.send_response(401)
            self.end_headers()

        def log_message(self, *_):
            pass

    hub = pytest.importorskip("huggingface_hub")
    out = export(saved()[0], tmp_path / "out", "hf", None)
    with serving(HTTPServer(("127.0.0.1", 0), Hub)) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(hub, "HfApi", lambda: hub.hf_api.HfApi(endpoint=address, token="none"))
        with pytest.raises(StudyError, match="is exported, but not pushed to owner/name"):
            push(out, "owner/name", private=True)
    path, said = asked[0]
    assert path == "/api/repos/create"
    assert said["name"] == "name"
    assert said.get("private") or said.get("visibility") == "private"
    assert (out / "model.safetensors").exists()


def test_what_is_pushed_is_the_folder_and_its_card_is_one_that_the_hub_reads(saved, tmp_path, monkeypatch):
    there = tmp_path / "hub"
    there.mkdir()

    class Hub(BaseHTTPRequestHandler):
        """As the client finds the real one, where all files are small and go into a folder here."""

        def do_GET(self):
            self._answer({"id": "owner/name", "sha": "a" * 40, "siblings": []})

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if "/preupload/" in self.path:
                files = [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
                ]
                self._answer({"files": files})
            elif "/commit/" in self.path:
                for said in map(json.loads, body.splitlines()):
                    if said["key"] == "file":
                        (there / said["value"]["path"]).write_bytes(base64.b64decode(said["value"]["content"]))
                self._answer({"success": True, "commitOid": "b" * 40, "commitUrl": f"{self._address}/owner/name/commit/b"})
            elif self.path.endswith("/validate-yaml"):
                card = json.loads(body)["content"].split("---")[1]
                assert yaml.safe_load(card)["library_name"] == "transformers"
                self._answer({"errors": [], "warnings": []})
            else:
                self._answer({"url": f"{self._address}/owner/name"})

        @property
        def _address(self):
            return f"http://127.0.0.1:{self.server.server_port}"

        def _answer(self, said):
            body = json.dumps(said).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    hub, yaml = pytest.importorskip("huggingface_hub"), pytest.importorskip("yaml")
    out = export(saved()[0], tmp_path / "out", "hf", None)
    with serving(HTTPServer(("127.0.0.1", 0), Hub)) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(hub, "HfApi", lambda: hub.hf_api.HfApi(endpoint=address, token="none"))
        assert push(out, "owner/name", private=True).startswith(f"{address}/owner/name")
    assert {p.name: p.read_bytes() for p in there.iterdir()} == {p.name: p.read_bytes() for p in out.iterdir()}
