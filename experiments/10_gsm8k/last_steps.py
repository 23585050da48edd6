"""GSM8K with all of each solution given but its last step: problems that a small model can solve.

    python experiments/10_gsm8k/last_steps.py gsm8k/train.jsonl last_steps.jsonl

Keeps questions of at most 200 characters with solutions of at least two lines; the calculator
marks (<<...>>) are taken out.
"""

import json
import re
import sys
from pathlib import Path

LONGEST = 200


def main() -> None:
    """One problem a line: id, question, steps so far, the last step with the answer, answer."""
    source, target = map(Path, sys.argv[1:])
    with source.open(encoding="utf-8") as file:  # splitlines would cut at U+2028 as well
        found = [made(json.loads(line)) for line in file]
    lines = [json.dumps(row) for row in found if row is not None]
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} of {len(found)} problems in {target}")


def made(row: dict[str, str]) -> dict[str, str] | None:
    """The problem, or None where it is long or has but one step."""
    *steps, answer = re.sub(r"<<.*?>>", "", row["answer"]).splitlines()
    if len(row["question"]) > LONGEST or len(steps) < 2:
        return None
    return {
        "id": row["id"],
        "question": row["question"],
        "so_far": "\n".join(steps[:-1]),
        "last": f"{steps[-1]}\n{answer}",
        "answer": answer.removeprefix("####").strip(),
    }


if __name__ == "__main__":
    main()
