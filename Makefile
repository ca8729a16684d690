# `make demo` and `make test` each do everything on a fresh machine: environment, installation, run.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
RUN := runs/demo
THREADS ?= $(shell nproc 2>/dev/null || echo 2)
export NO_ALBUMENTATIONS_UPDATE = 1

NPM := PATH="$(CURDIR)/$(VENV)/bin:$$PATH" npm --prefix web# Node comes from requirements-web.txt
WEB_SOURCES := web/package-lock.json web/index.html web/vite.config.js $(wildcard web/src/*)

.PHONY: install demo test test-slow test-web lint web screenshots reproduce clean

install: $(VENV)/.installed

$(VENV)/.installed: requirements.txt requirements-dev.txt constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt -c constraints.txt
	touch $@

demo: install
	$(PY) train.py --data demo --output-dir $(RUN) --overwrite --epochs 10 --lr 2e-3 --train-size 112
	$(PY) evaluate.py --checkpoint $(RUN)/best.pt --data demo --output-dir $(RUN)/evaluation
	$(PY) predict.py --checkpoint $(RUN)/best.pt 'data/demo-*-n2400-*/test/real/*0.jpg' 'data/demo-*-n2400-*/test/fake/*/*0.jpg' --output $(RUN)/predictions.csv

test: install
	$(PY) -m pytest --numprocesses $(THREADS) --maxprocesses 8 --dist loadfile --max-worker-restart 0

test-slow: install
	$(PY) -m pytest -m slow

web: web/dist/index.html

$(VENV)/.installed-web: $(VENV)/.installed requirements-web.txt constraints.txt
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-web.txt -c constraints.txt
	touch $@

web/node_modules/.installed: web/package-lock.json $(VENV)/.installed-web
	$(NPM) ci --no-audit --no-fund --loglevel=error
	touch $@

web/dist/index.html: web/node_modules/.installed $(WEB_SOURCES)
	$(NPM) run build

test-web: web
	$(PY) -m pytest tests_web

screenshots: web
	$(PY) -m tests_web.screenshots

# QUICK=1 for the demo set alone; DATA and WEIGHTS are the folders of the data sets and of the ImageNet weights.
reproduce: install
	$(PY) -m studies.reproduce $(if $(QUICK),--quick) --data-root $(or $(DATA),data) --weights-dir $(or $(WEIGHTS),weights)

lint: install
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

clean:
	rm -rf runs .pytest_cache .ruff_cache .mypy_cache
