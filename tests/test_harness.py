import json

import pytest
import torch
from tokenizers import Tokenizer
from typer.testing import CliRunner

from budgetlm.cli import app
from budgetlm.errors import ConfigError, StudyError
from budgetlm.harness import run_tasks
from budgetlm.model.export import save_model
from budgetlm.model.transformer import build
from tests.conftest import sentences, tiny_model

ENDINGS = ["river", "stone", "garden"]


@pytest.fixture
def model(tmp_path, tokens):
    """A final's folder, and the network in it."""
    folder = tmp_path / "model"
    folder.mkdir()
    network = build(tiny_model(vocab_size=tokens.facts.vocab_size), seed=1).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(3)  # of a mind of its own
    save_model(folder, network, tokens.tokenizer_file, tokens.facts.end_of_text)
    return folder, network


@pytest.fixture
def questions(tmp_path):
    """A local task: which of three words ends a sentence."""
    lines = [line.rsplit(" and counts", 1)[0] for line in sentences(2, seed=5)[0].splitlines()[1:]]
    rows = [{"text": line, "answer": number % len(ENDINGS)} for number, line in enumerate(lines)]
    (tmp_path / "ends.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "ends.yaml").write_text(f"""
task: ends
dataset_path: json
dataset_kwargs:
  data_files:
    test: {tmp_path / "ends.jsonl"}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: {json.dumps(ENDINGS)}
doc_to_target: answer
metric_list:
  - metric: acc
""")
    return rows


def test_without_the_package_it_is_a_line(model, tmp_path, monkeypatch):
    monkeypatch.setattr("budgetlm.harness.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'budgetlm\[eval\]'"):
        run_tasks(model[0], ["ends"], None)
    done = CliRunner().invoke(app, ["eval", "--data", "stdlib", "--tasks", "ends", "--model", str(model[0])])
    assert "two measurements" in str(done.exception)


@pytest.mark.filterwarnings("ignore")
class TestWithTheHarness:
    @pytest.fixture(autouse=True)
    def _installed(self, tmp_path, monkeypatch):
        pytest.importorskip("lm_eval")
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def test_a_local_task_is_answered_as_our_own_model_answers_it(self, model, questions, tmp_path, tokens):
        folder, network = model
        tokenizer, right = Tokenizer.from_file(str(tokens.tokenizer_file)), 0
        for row in questions:
            begun = tokenizer.encode(row["text"]).ids
            likely = []
            for ending in ENDINGS:
                ids = tokenizer.encode(f"{row['text']} {ending}").ids
                with torch.no_grad():
                    logs = network(torch.tensor([ids]))[0].log_softmax(-1)
                likely.append(float(sum(logs[at - 1, ids[at]] for at in range(len(begun), len(ids)))))
            right += likely.index(max(likely)) == row["answer"]
        options = ["eval", "--model", str(folder), "--tasks", "ends", "--include-path", str(tmp_path / "tasks")]
        said = CliRunner().invoke(app, [*options, "--json"])
        assert said.exit_code == 0, said.exception
        answers = json.loads(said.stdout[said.stdout.index("{") :])
        assert answers["ends"]["acc,none"] == pytest.approx(right / len(questions))
        assert 0 < right < len(questions)
        assert "|ends" in CliRunner().invoke(app, [*options, "--limit", "2"]).stdout

    def test_an_unknown_task_and_one_that_cannot_be_read_are_lines(self, model, questions, tmp_path):
        with pytest.raises(ConfigError, match="knows no task nonsense"):
            run_tasks(model[0], ["nonsense"], tmp_path / "tasks")
        with pytest.raises(ConfigError, match="there is no folder"):
            run_tasks(model[0], ["ends"], tmp_path / "nowhere")
        (tmp_path / "ends.jsonl").unlink()
        with pytest.raises(StudyError, match="gave up on ends"):
            run_tasks(model[0], ["ends"], tmp_path / "tasks")
