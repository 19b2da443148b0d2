# Each target works on a fresh clone: it creates .venv and installs when needed, and does nothing again otherwise.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: install run smoke test test-all faults check results bench up down ui browser screenshots servers docs

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@echo "installing into .venv: 2 GB, a few minutes the first time …"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

run: $(STAMP)  ## the quickstart: three cells on an embedded corpus
	$(BIN)/rnnlm run

smoke: $(STAMP)  ## the whole chain, tiny, checked; SUMMARY=FILE appends what came of it to a file, in Markdown
	$(BIN)/rnnlm smoke $${SUMMARY:+--summary "$$SUMMARY"}

# A worker per core: threads of PyTorch's own would only wait for each other.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow' --numprocesses auto --dist loadfile

test-all: $(STAMP)
	$(BIN)/python -m pytest

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/zizmor --offline --no-progress --strict-collection --persona pedantic .github/workflows
	$(BIN)/python -m flows.deployments

faults: $(STAMP)  ## kill, damage, fill and lock, hundreds of times; three hours and more
	RNNLM_KILLS=50 RNNLM_SEEDS=200 RNNLM_COMMANDS=10 RNNLM_STACK_KILLS=20 RNNLM_EXAMPLES=500 $(BIN)/python -m pytest tests/faults -s

BROWSER := .venv/.browser

$(BROWSER): $(STAMP)
	@command -v chromium >/dev/null || { echo "no Chromium here: apt-get install chromium (Debian, as root)" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[browser]'
	@touch $@

browser: $(BROWSER)  ## MLflow's comparison, the report and the page of `rnnlm serve`, tried in a real browser
	$(BIN)/python -m pytest tests/e2e/test_browser.py tests/e2e/test_browser_form.py

screenshots: $(BROWSER)  ## the pictures of the README and the guides, of the newest run of three cells
	PYTHONPATH=tests/faults:tests/e2e $(BIN)/python tests/e2e/screenshots.py docs/images

SERVERS := .venv/.servers

$(SERVERS): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[servers]'
	@touch $@

servers: $(SERVERS)  ## PostgreSQL under both databases, an S3-compatible store under MLflow and under artifacts; fifteen minutes
	$(BIN)/python -m pytest tests/e2e/test_postgresql.py tests/e2e/test_s3.py
	$(BIN)/python -m pytest -k 's3 or shared' tests/core/test_store.py tests/core/test_remote.py tests/flows/test_shared_store.py tests/faults/test_chaos.py

BENCH := .venv/.bench
PEERS := 0.17.6 1.0.3

# Both are called d2l, and pin libraries of years ago: each alone in a folder, without its dependencies.
$(BENCH): $(STAMP)
	for version in $(PEERS); do \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
			--target .venv/peers/d2l-$$version d2l==$$version || exit 1; \
	done
	@touch $@

bench: $(BENCH)  ## beside the book's packages and plain PyTorch, into docs/performance.md; half an hour of a quiet machine
	$(BIN)/python -m benchmarks --json artifacts/bench.json
	$(BIN)/python -m benchmarks render artifacts/bench.json

results: $(STAMP)  ## docs/results.md, from the tracked runs
	$(BIN)/rnnlm results --output docs/results.md

DOCS := .venv/.docs

$(DOCS): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	@touch $@

# The theme tells of its end in 2027 at every build; with `--quiet`, MkDocs would let dead links pass.
docs: $(DOCS)  ## the handbook: the pages made of the code, then all of docs/ into site/; a dead link fails
	$(BIN)/python -m handbook
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build
	$(BIN)/python -m pytest --quiet tests/handbook
	@echo "site/index.html; for its search: $(BIN)/python -m http.server --bind 127.0.0.1 --directory site"

up: $(STAMP)  ## Prefect's server, a worker and MLflow's pages on loopback, all deployed; Ctrl-C ends them
	$(BIN)/rnnlm up

down: $(STAMP)  ## end what `rnnlm up --detach` has started
	$(BIN)/rnnlm down

ui: $(STAMP)  ## both user interfaces on loopback, until Ctrl-C
	@echo "MLflow:  http://127.0.0.1:5000/#/experiments/1/runs"; echo "Prefect: http://127.0.0.1:4200"; echo "both answer in a few seconds, until Ctrl-C"; \
	$(BIN)/prefect server start --host 127.0.0.1 & prefect=$$!; trap 'kill $$prefect 2>/dev/null' EXIT; \
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false \
	$(BIN)/mlflow ui --workers 1 --host 127.0.0.1 --backend-store-uri sqlite:///$(CURDIR)/mlflow.db
