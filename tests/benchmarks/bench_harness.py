"""lm-evaluation-harness on an exported model, on a task of one's own: which of three stretches of lines comes next?

Questions are of every fourth file of the larger packages of the standard library: the files that `bench_finetune` keeps out of the text that it writes. So a model of that text has read
none of them, and one of `stdlib` all of them. Wrong answers are stretches of the same file. The task is put to the model by `budgetlm eval --tasks` and by the harness's own command, which
have to agree. It needs `pip install 'budgetlm[eval]'`, and nothing from a network.

    budgetlm run --hours 0.05 --data bench-finetune/text --study decoder && budgetlm export exported --study decoder
    python -m tests.benchmarks.bench_harness exported
"""

import argparse
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.benchmarks.bench_finetune import packages

TASK = "next_lines"
BEFORE, AFTER, ANSWERS = 8, 3, 3
"""Lines of the question, of an answer, and answers."""
EACH = 3
"""Questions of a file, at most."""
YAML = """task: next_lines
dataset_path: json
dataset_kwargs: {{data_files: {{test: {questions}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
target_delimiter: "\\n"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""


def questions(paths: list[Path], most: int) -> list[dict[str, object]]:
    """What comes next in files, and two stretches of each that do not."""
    found: list[dict[str, object]] = []
    for path in paths:
        chance, lines = random.Random(path.name), path.read_text(errors="replace").splitlines()
        stretches = ["\n".join(lines[at : at + AFTER]) for at in range(len(lines) - AFTER)]
        full = [at for at in range(BEFORE, len(stretches)) if len(stretches[at].strip()) > 40]
        for at in chance.sample(full, min(EACH, len(full))):
            others = [stretches[other] for other in full if abs(other - at) > AFTER and stretches[other] != stretches[at]]
            if len(others) >= ANSWERS - 1:
                choices = [stretches[at], *chance.sample(others, ANSWERS - 1)]
                chance.shuffle(choices)
                before = "\n".join(lines[at - BEFORE : at])
                found.append({"text": before, "choices": choices, "answer": choices.index(stretches[at])})
    random.Random(0).shuffle(found)
    return found[:most]


def main() -> None:
    """Write the task, and put it to the model in both ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "model", type=Path, nargs="?", default=Path("exported"), help="a folder that `budgetlm export` wrote"
    )
    parser.add_argument("--questions", type=int, default=200)
    wanted = parser.parse_args()
    with TemporaryDirectory() as place:
        home = Path(place)
        (home / "tasks").mkdir()
        asked = questions([path for paths in packages().values() for path in paths[::4]], wanted.questions)
        (home / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
        (home / "tasks" / f"{TASK}.yaml").write_text(YAML.format(questions=home / "questions.jsonl"))
        print(f"{len(asked)} questions; guessing has {1 / ANSWERS:.3f}", flush=True)
        ours = ["budgetlm", "eval", "--model", str(wanted.model), "--tasks", TASK, "--include-path", str(home / "tasks")]
        theirs = ["lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={wanted.model}", "--tasks", TASK]
        theirs += ["--include_path", str(home / "tasks"), "--device", "cpu"]
        offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(home / "cache")}
        for command in (ours, theirs):
            print("$", *command, flush=True)
            done = subprocess.run([sys.executable, "-m", *command], env=offline, capture_output=True, text=True)
            print(done.stdout or done.stderr, flush=True)
            done.check_returncode()


if __name__ == "__main__":
    main()
