# Developer commands; `make` lists them.
PYTHON ?= $(if $(wildcard .venv/bin/python),.venv/bin/python,python3)

.DEFAULT_GOAL := help
.PHONY: help setup test lint demo record docs

help:		## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:		## make .venv with the requirements and what tests need
	python3 -m venv .venv
	.venv/bin/python -m pip install -r requirements.txt pytest-xdist ruff

test:		## run the tests
	$(PYTHON) -m pytest -n 2 --dist loadfile

lint:		## check the style
	$(PYTHON) -m ruff check

demo:		## run the notebook on drawn data; no download, no GPU
	$(PYTHON) -m papermill CIFAR_100_CNN_Training.ipynb runs/demo.ipynb -p preset demo

record:		## draw figures/record.png and write figures/record.json from figures/record/
	$(PYTHON) -m helpers.tools.results

docs:		## write docs/SETTINGS.md from helpers/config.py
	$(PYTHON) -m helpers.tools.settings_page
