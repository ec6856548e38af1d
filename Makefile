# The commands of everyday work. Each installs by name what this machine misses, and says so.

.PHONY: demo test rails-test lint pg-regress bench soak help

help:
	@echo 'make demo        see pgvalet at work, in a terminal'
	@echo 'make test        everything that CI checks'
	@echo 'make rails-test  only the Rails scenarios'
	@echo 'make lint        formatting, clippy, documentation, supply chain'
	@echo 'make bench       what pgvalet costs, beside PgBouncer and HAProxy; ARGS=--quick for three minutes of it'
	@echo 'make soak        random programs and tenants for long; ROUNDS=100 for less'
	@echo "make pg-regress  PostgreSQL's own suites, through pgvalet (some 25 minutes)"

demo:
	@scripts/bootstrap demo
	@scripts/demo $(ARGS)

test:
	@scripts/bootstrap test
	@scripts/lint
	@scripts/test

rails-test:
	@scripts/bootstrap test
	@scripts/test rails

lint:
	@scripts/bootstrap test
	@scripts/lint

pg-regress:
	@scripts/bootstrap demo
	@scripts/pg-regress $(ARGS)

bench:
	@bench/run $(ARGS)

soak:
	@scripts/bootstrap test
	@scripts/soak $(ROUNDS)
