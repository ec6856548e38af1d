/* What libpq offers, one case a run: `libpq-client CASE`. Connects by PG* variables; fails by a message and exit status 1. */

#include <libpq-fe.h>
#include <libpq/libpq-fs.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                                              \
	do {                                                                                                              \
		if (!(condition)) {                                                                                           \
			fprintf(stderr, "line %d: %s: %s", __LINE__, #condition, conn ? PQerrorMessage(conn) : "");               \
			exit(1);                                                                                                  \
		}                                                                                                             \
	} while (0)

static PGconn *conn;

static PGconn *open_connection(void)
{
	PGconn *opened = PQconnectdb("");
	if (PQstatus(opened) != CONNECTION_OK) {
		fprintf(stderr, "%s", PQerrorMessage(opened));
		exit(1);
	}
	return opened;
}

/* Runs SQL that must end with the given status. */
static void run(const char *sql, ExecStatusType expected)
{
	PGresult *result = PQexec(conn, sql);
	CHECK(PQresultStatus(result) == expected);
	PQclear(result);
}

/* Runs SQL whose first value must be `expected`. */
static void value(const char *sql, const char *expected)
{
	PGresult *result = PQexec(conn, sql);
	CHECK(PQresultStatus(result) == PGRES_TUPLES_OK && strcmp(PQgetvalue(result, 0, 0), expected) == 0);
	PQclear(result);
}

/* The next result must have the given status. */
static void next(ExecStatusType expected)
{
	PGresult *result = PQgetResult(conn);
	CHECK(PQresultStatus(result) == expected);
	PQclear(result);
}

static void no_more(void)
{
	CHECK(PQgetResult(conn) == NULL);
}

static void queries(void)
{
	const char *values[] = {"41"};
	PGresult *result = PQexecParams(conn, "SELECT $1::int + 1", 1, NULL, values, NULL, NULL, 0);
	CHECK(strcmp(PQgetvalue(result, 0, 0), "42") == 0);
	PQclear(result);
	CHECK(PQsendQuery(conn, "SELECT 1; SELECT 2; SELECT 1/0; SELECT 3"));
	next(PGRES_TUPLES_OK), next(PGRES_TUPLES_OK), next(PGRES_FATAL_ERROR), no_more();
	run("", PGRES_EMPTY_QUERY);
	run("BEGIN", PGRES_COMMAND_OK);
	CHECK(PQtransactionStatus(conn) == PQTRANS_INTRANS);
	run("SELECT 1/0", PGRES_FATAL_ERROR);
	CHECK(PQtransactionStatus(conn) == PQTRANS_INERROR);
	run("ROLLBACK", PGRES_COMMAND_OK);
	CHECK(PQtransactionStatus(conn) == PQTRANS_IDLE);
	run("SET TimeZone = 'Asia/Tokyo'", PGRES_COMMAND_OK);
	CHECK(strcmp(PQparameterStatus(conn, "TimeZone"), "Asia/Tokyo") == 0);
}

static void single_row(void)
{
	CHECK(PQsendQuery(conn, "SELECT generate_series(1, 500)") && PQsetSingleRowMode(conn));
	for (int row = 0; row < 500; row++)
		next(PGRES_SINGLE_TUPLE);
	next(PGRES_TUPLES_OK), no_more();
}

static void prepared(void)
{
	PGresult *result = PQprepare(conn, "s", "SELECT $1::text", 1, NULL);
	CHECK(PQresultStatus(result) == PGRES_COMMAND_OK);
	PQclear(result);
	result = PQdescribePrepared(conn, "s");
	CHECK(PQnparams(result) == 1 && PQparamtype(result, 0) == 25);
	PQclear(result);
	const char *values[] = {"again"};
	for (int times = 0; times < 20; times++) {
		result = PQexecPrepared(conn, "s", 1, values, NULL, NULL, 0);
		CHECK(strcmp(PQgetvalue(result, 0, 0), "again") == 0);
		PQclear(result);
	}
	run("DEALLOCATE s", PGRES_COMMAND_OK);
	result = PQexecPrepared(conn, "s", 1, values, NULL, NULL, 0);
	CHECK(strcmp(PQresultErrorField(result, PG_DIAG_SQLSTATE), "26000") == 0);
	PQclear(result);
}

static void pipeline(void)
{
	CHECK(PQenterPipelineMode(conn));
	CHECK(PQsendPrepare(conn, "p", "SELECT $1::int", 1, NULL));
	for (int i = 0; i < 200; i++) {
		char number[16];
		const char *values[] = {number};
		snprintf(number, sizeof number, "%d", i);
		CHECK(PQsendQueryPrepared(conn, "p", 1, values, NULL, NULL, 0));
		CHECK(i % 10 != 9 || PQpipelineSync(conn));
	}
	next(PGRES_COMMAND_OK), no_more();
	for (int i = 0; i < 200; i++) {
		PGresult *result = PQgetResult(conn);
		CHECK(PQresultStatus(result) == PGRES_TUPLES_OK && atoi(PQgetvalue(result, 0, 0)) == i);
		PQclear(result), no_more();
		if (i % 10 == 9)
			next(PGRES_PIPELINE_SYNC);
	}
	CHECK(PQexitPipelineMode(conn));
	value("SELECT 1", "1");
}

static void send(const char *sql)
{
	CHECK(PQsendQueryParams(conn, sql, 0, NULL, NULL, NULL, NULL, 0));
}

static void pipeline_error(void)
{
	run("CREATE TABLE t (a int)", PGRES_COMMAND_OK);
	CHECK(PQenterPipelineMode(conn));
	send("INSERT INTO t VALUES (1)"), send("SELECT 1/0"), send("INSERT INTO t VALUES (2)");
	CHECK(PQpipelineSync(conn));
	send("INSERT INTO t VALUES (3)");
	CHECK(PQsendFlushRequest(conn) && PQflush(conn) == 0);
	next(PGRES_COMMAND_OK), no_more();
	next(PGRES_FATAL_ERROR), no_more();
	next(PGRES_PIPELINE_ABORTED), no_more();
	next(PGRES_PIPELINE_SYNC);
	next(PGRES_COMMAND_OK), no_more();
	CHECK(PQpipelineSync(conn));
	next(PGRES_PIPELINE_SYNC);
	CHECK(PQexitPipelineMode(conn));
	value("SELECT string_agg(a::text, ',') FROM t", "3");
}

static void copy_in(void)
{
	run("CREATE TABLE t (a int, b text)", PGRES_COMMAND_OK);
	run("COPY t FROM STDIN", PGRES_COPY_IN);
	for (int i = 0; i < 20000; i++) {
		char line[64];
		int length = snprintf(line, sizeof line, "%d\trow %d\n", i, i);
		CHECK(PQputCopyData(conn, line, length) == 1);
	}
	CHECK(PQputCopyEnd(conn, NULL) == 1);
	next(PGRES_COMMAND_OK), no_more();
	value("SELECT count(*) FROM t", "20000");
}

static void copy_out(void)
{
	int rows = 0, length;
	char *line;
	run("COPY (SELECT i, repeat('x', 100) FROM generate_series(1, 20000) i) TO STDOUT", PGRES_COPY_OUT);
	while ((length = PQgetCopyData(conn, &line, 0)) > 0)
		rows++, PQfreemem(line);
	CHECK(length == -1 && rows == 20000);
	next(PGRES_COMMAND_OK), no_more();
}

static void copy_fails(void)
{
	run("CREATE TABLE t (a int)", PGRES_COMMAND_OK);
	run("COPY t FROM STDIN", PGRES_COPY_IN);
	CHECK(PQputCopyData(conn, "1\n", 2) == 1 && PQputCopyEnd(conn, "I give up") == 1);
	next(PGRES_FATAL_ERROR), no_more();
	run("COPY t FROM STDIN", PGRES_COPY_IN);
	CHECK(PQputCopyData(conn, "x\n", 2) == 1);
	for (int i = 0; i < 50000; i++)
		CHECK(PQputCopyData(conn, "12345\n", 6) == 1);
	PQputCopyEnd(conn, NULL);
	next(PGRES_FATAL_ERROR), no_more();
	value("SELECT count(*) FROM t", "0");
}

static void large_object(void)
{
	char read[11] = "";
	run("BEGIN", PGRES_COMMAND_OK);
	Oid object = lo_creat(conn, INV_READ | INV_WRITE);
	CHECK(object != InvalidOid);
	int descriptor = lo_open(conn, object, INV_READ | INV_WRITE);
	CHECK(descriptor >= 0 && lo_write(conn, descriptor, "0123456789", 10) == 10);
	CHECK(lo_lseek(conn, descriptor, 3, SEEK_SET) == 3 && lo_read(conn, descriptor, read, 4) == 4);
	CHECK(strcmp(read, "3456") == 0 && lo_tell(conn, descriptor) == 7 && lo_close(conn, descriptor) == 0);
	run("COMMIT", PGRES_COMMAND_OK);
	CHECK(lo_unlink(conn, object) == 1);
}

static void cancel(void)
{
	char error[256];
	PGconn *other = open_connection();
	PGcancel *handle = PQgetCancel(conn);
	CHECK(PQsendQuery(conn, "SELECT pg_sleep(600)"));
	for (int running = 0; !running;) {
		PGresult *result = PQexec(other, "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND query = 'SELECT pg_sleep(600)'");
		running = PQntuples(result);
		PQclear(result);
	}
	CHECK(PQcancel(handle, error, sizeof error) == 1);
	PGresult *result = PQgetResult(conn);
	CHECK(strcmp(PQresultErrorField(result, PG_DIAG_SQLSTATE), "57014") == 0);
	PQclear(result), no_more();
	value("SELECT 1", "1");
	PQfreeCancel(handle), PQfinish(other);
}

static void notify(void)
{
	PGconn *other = open_connection();
	PGnotify *news = NULL;
	run("LISTEN news", PGRES_COMMAND_OK);
	PQclear(PQexec(other, "NOTIFY news, 'hello'"));
	while ((news = PQnotifies(conn)) == NULL) {
		struct pollfd readable = {.fd = PQsocket(conn), .events = POLLIN};
		CHECK(poll(&readable, 1, 30000) == 1 && PQconsumeInput(conn));
	}
	CHECK(strcmp(news->relname, "news") == 0 && strcmp(news->extra, "hello") == 0);
	CHECK(news->be_pid != PQbackendPID(conn));
	PQfreemem(news), PQfinish(other);
}

static void remember(void *notice, const char *message)
{
	snprintf(notice, 64, "%s", message);
}

static void notices(void)
{
	char notice[64] = "";
	PQsetNoticeProcessor(conn, remember, notice);
	run("DO $$ BEGIN RAISE NOTICE 'hello'; END $$", PGRES_COMMAND_OK);
	CHECK(strcmp(notice, "NOTICE:  hello\n") == 0);
}

static void two_phase(void)
{
	run("CREATE TABLE t (a int)", PGRES_COMMAND_OK);
	run("BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'x'", PGRES_COMMAND_OK);
	value("SELECT gid FROM pg_prepared_xacts", "x");
	run("COMMIT PREPARED 'x'", PGRES_COMMAND_OK);
	value("SELECT count(*) FROM t", "1");
}

static void nonblocking(void)
{
	CHECK(PQsetnonblocking(conn, 1) == 0);
	char *sql = malloc(4 * 1024 * 1024);
	snprintf(sql, 32, "SELECT length('");
	memset(sql + 15, 'x', 4000000);
	memcpy(sql + 15 + 4000000, "')", 3);
	CHECK(PQsendQuery(conn, sql));
	for (int pending; (pending = PQflush(conn)) != 0;) {
		struct pollfd ready = {.fd = PQsocket(conn), .events = POLLIN | POLLOUT};
		CHECK(pending == 1 && poll(&ready, 1, 30000) == 1);
		CHECK(!(ready.revents & POLLIN) || PQconsumeInput(conn));
	}
	PGresult *result = PQgetResult(conn);
	CHECK(strcmp(PQgetvalue(result, 0, 0), "4000000") == 0);
	PQclear(result), no_more(), free(sql);
}

static void reset(void)
{
	run("CREATE TEMP TABLE mine (a int)", PGRES_COMMAND_OK);
	PQreset(conn);
	CHECK(PQstatus(conn) == CONNECTION_OK);
	value("SELECT count(*) FROM pg_class WHERE relname = 'mine' AND relnamespace = pg_my_temp_schema()", "0");
}

#define CASE(name) {#name, name}
static const struct {
	const char *name;
	void (*run)(void);
} cases[] = {CASE(queries), CASE(single_row), CASE(prepared), CASE(pipeline), CASE(pipeline_error), CASE(copy_in),
	CASE(copy_out), CASE(copy_fails), CASE(large_object), CASE(cancel), CASE(notify), CASE(notices), CASE(two_phase),
	CASE(nonblocking), CASE(reset)};

int main(int argc, char **argv)
{
	conn = open_connection();
	for (size_t i = 0; argc == 2 && i < sizeof cases / sizeof *cases; i++) {
		if (strcmp(cases[i].name, argv[1]) == 0) {
			cases[i].run();
			PQfinish(conn);
			return 0;
		}
	}
	fprintf(stderr, "usage: libpq-client CASE\n");
	return 2;
}
