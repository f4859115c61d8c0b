# Two commands: `make demo` trains and judges a tiny video encoder; `make test` runs all tests.
# Both install missing system packages first (see tools/system-packages.sh).

.DELETE_ON_ERROR:
CARGO ?= cargo
RUNS ?= runs

.PHONY: demo test packages check docs

demo: packages
	$(CARGO) build --release --locked --package experiments
	./tools/demo.sh $(RUNS)/demo

test: packages
	./tools/test.sh

packages:
	@./tools/system-packages.sh

# What a change must pass, cheapest first.
check:
	./tools/format.sh --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	./tools/test.sh

docs:
	mdbook build docs
