# One virtual environment, .venv, with the versions of constraints.txt.
# make test | make quickstart | make tables | make lint | make clean

# The first Python that is new enough and can make a virtual environment; or `make PYTHON=...`.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$p && break; done)
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: test quickstart tables lint clean

# The networks under test are tiny: one thread each is fastest, and leaves cores to the simulators.
test: $(INSTALLED)
	@echo "== Running the tests"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

quickstart: $(INSTALLED)
	@echo "== Looking for the libraries that draw robosuite's pictures"
	@$(BIN)/python -c "$$CHECK_LIBRARIES"
	@echo "== Improving the bundled policy in imagination, then judging it in robosuite"
	$(BIN)/wm-gym quickstart

tables: $(INSTALLED)
	$(BIN)/python docs/make_tables.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "wm-gym needs Python 3.11 or later with the venv module; none was" \
		"found. Install one (Debian, Ubuntu: apt-get install python3 python3-venv), or name it with" \
		"make PYTHON=/path/to/python." >&2; exit 1; }
	@echo "== Making .venv with $(PYTHON) ($$($(PYTHON) --version))"
	@$(PYTHON) -m venv .venv
	@echo "== Installing torch (the largest download, some minutes)"
	@$(BIN)/python -m pip install torch -c constraints.txt
	@echo "== Installing wm-gym and everything else that it needs"
	@$(BIN)/python -m pip install -e '.[real,sb3,dev]' -c constraints.txt
	@touch $@

# robosuite imports OpenCV, which needs libraries of its own beside the one that renders.
define CHECK_LIBRARIES
import sys
from wm_gym.real.rendering import choose_gl
try:
    print("   rendering with", choose_gl())
    import cv2
except RuntimeError as error:
    sys.exit(str(error))
except ImportError as error:
    sys.exit(f"robosuite needs OpenCV, which does not load: {error}. On Debian and Ubuntu, "
             "`apt-get install libgl1 libglib2.0-0` mends it.")
endef
export CHECK_LIBRARIES
