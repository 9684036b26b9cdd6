# make lab    open the notebooks in JupyterLab; as root, in a container: make lab ARGS=--allow-root
# make test   unit tests, then every notebook is executed and compared with its stored outputs
# make test-browser  JupyterLab in a real browser; needs Chromium (on Debian: apt install chromium)
# make test-colab  all notebooks with the versions of other libraries that Colab has, in .venv-colab
# make run    execute all notebooks in place; make run NB=02 only that one
# make audit-report  how many planted mask bugs the audit finds, and how many false alarms it gives
# make lint   style and spelling
# make stamp  write the repository's address into the notebooks and the README
# Each makes .venv first if it is missing or older than the files that define it.

PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin

# More threads than cores slow small models down, and the last digits depend on the number of threads.
run test test-browser test-colab audit-report: export OMP_NUM_THREADS = 1

.PHONY: lab test test-browser test-colab run audit-report lint stamp

lab: .venv/ready
	$(BIN)/jupyter lab notebooks $(ARGS)

test: .venv/ready-test
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile \
		--nbval --nbval-current-env --nbval-cell-timeout 300 --ignore tests/browser tests notebooks

test-browser: .venv/ready-browser
	$(BIN)/python -m pytest tests/browser

# Their stored outputs come from other versions, so here a notebook passes when all its cells and asserts do.
test-colab: .venv-colab/ready
	.venv-colab/bin/python -m pytest --numprocesses $(WORKERS) --dist loadfile \
		--nbval-lax --nbval-current-env --nbval-cell-timeout 300 notebooks

run: .venv/ready-test
	$(BIN)/python tools/execute_notebooks.py $(NB)

audit-report: .venv/ready-test
	$(BIN)/python tests/audit_report.py

lint: .venv/ready-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

stamp: .venv/ready-test
	$(BIN)/python tools/stamp.py

# A working .venv is kept and only brought up to date; a missing or half-made one is made anew.
.venv/ready: pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info < (3, 15) or sys.exit("Python 3.11 to 3.14 is needed, but $(PYTHON) is " + sys.version.split()[0] + ". Name another one: make PYTHON=python3.12 ...")'
	$(BIN)/python -c 'import sys, pip; assert (3, 11) <= sys.version_info < (3, 15)' 2>/dev/null || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --editable . --constraint constraints.txt
	touch $@

.venv/ready-test: .venv/ready
	$(BIN)/python -m pip install --editable '.[test]' --constraint constraints.txt
	touch $@

.venv/ready-browser: .venv/ready-test
	$(BIN)/python -m pip install --editable '.[test,browser]' --constraint constraints.txt
	touch $@

.venv-colab/ready: pyproject.toml constraints-colab.txt Makefile
	$(PYTHON) -m venv --clear .venv-colab
	.venv-colab/bin/python -m pip install --editable '.[test]' --constraint constraints-colab.txt
	touch $@
