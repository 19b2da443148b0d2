"""A process that makes a corpus of a text and tells how much memory that took: `long_text.py TEXT LEVEL [RUNNER]`."""

import json
import sys
from pathlib import Path


def main(path: str, level: str, runner: str = "local") -> None:
    from tasks import workspace

    workspace.prepare_environment()
    from flows.runners import Runner
    from flows.server import prefect_api
    from flows.text_stages import make_of_shards
    from rnnlm_core.download import download, resolve
    from rnnlm_core.presets import run_config
    from rnnlm_core.process_usage import peak_bytes

    changes = {"corpus.normalizer": "d2l-lines", "corpus.max_chars": 0, "corpus.max_tokens": 0}
    config = run_config("smoke", path, ["rnn"], {**changes, "corpus.split": "90/5/5", "tokenizer.level": level})
    with prefect_api() as api, api.ready():
        before = peak_bytes()
        source = resolve(path)
        made = make_of_shards(download(source, workspace.store()), config, source, Runner(runner), tokens_alone=False)
    assert made.corpus is not None
    train = made.corpus.splits["train"].num_tokens
    digests = {"vocabulary": made.vocabulary.handle.sha256, "corpus": made.corpus.handle.sha256}
    print(json.dumps({"before": before, "peak": peak_bytes(), "train": train, **digests}))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    main(*sys.argv[1:])
