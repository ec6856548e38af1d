// PostgreSQL's JDBC driver: `java -cp postgresql.jar Jdbc.java URL [moves]`. Every case of its own connection; fails by exception.

import java.io.StringReader;
import java.io.StringWriter;
import java.sql.*;
import java.util.Arrays;
import java.util.Collections;
import org.postgresql.PGConnection;

public class Jdbc {
    static String url;
    /** Whether the session may move: what it prepared is then prepared anew, with the columns of that time. */
    static boolean moves;

    interface Case {
        void run(Connection connection) throws Exception;
    }

    static void check(boolean right, String what) {
        if (!right) throw new AssertionError(what);
    }

    static Connection connect(String more) throws SQLException {
        return DriverManager.getConnection(url + more);
    }

    static Object one(Statement statement, String sql) throws SQLException {
        try (ResultSet rows = statement.executeQuery(sql)) {
            rows.next();
            return rows.getObject(1);
        }
    }

    static void types(Connection connection) throws Exception {
        String sql = "SELECT ?::int + 1, ?::text, ?::numeric, ?::timestamp, ?::bool, ?::bytea, ?::int[]";
        try (PreparedStatement statement = connection.prepareStatement(sql)) {
            for (int i = 0; i < 12; i++) { // from the fifth on prepared by name, and binary
                statement.setInt(1, i);
                statement.setString(2, "Ünï");
                statement.setBigDecimal(3, new java.math.BigDecimal("12.50"));
                statement.setTimestamp(4, Timestamp.valueOf("2020-02-02 02:02:02"));
                statement.setBoolean(5, true);
                statement.setBytes(6, new byte[] {0, 1, (byte) 255});
                statement.setArray(7, connection.createArrayOf("int4", new Object[] {1, 2, null}));
                try (ResultSet rows = statement.executeQuery()) {
                    rows.next();
                    check(rows.getInt(1) == i + 1 && rows.getString(2).equals("Ünï"), "int and text");
                    check(rows.getBigDecimal(3).toString().equals("12.50") && rows.getBoolean(5), "numeric");
                    check(rows.getTimestamp(4).toString().startsWith("2020-02-02 02:02:02"), "timestamp");
                    check(rows.getBytes(6).length == 3, "bytea");
                    check(Arrays.equals((Object[]) rows.getArray(7).getArray(), new Object[] {1, 2, null}), "array");
                }
            }
        }
    }

    static void batches(Connection connection) throws Exception {
        try (Statement statement = connection.createStatement()) {
            statement.execute("CREATE TABLE t (id serial PRIMARY KEY, a int UNIQUE)");
        }
        try (PreparedStatement insert = connection.prepareStatement("INSERT INTO t (a) VALUES (?)", Statement.RETURN_GENERATED_KEYS)) {
            for (int i = 0; i < 1000; i++) {
                insert.setInt(1, i);
                insert.addBatch();
            }
            check(insert.executeBatch().length == 1000, "batch");
            ResultSet keys = insert.getGeneratedKeys();
            check(keys.next() && keys.getInt(1) == 1, "generated keys");
            for (int i : new int[] {2000, 5, 2001}) {
                insert.setInt(1, i);
                insert.addBatch();
            }
            try {
                insert.executeBatch();
                throw new AssertionError("no error");
            } catch (BatchUpdateException error) {
                check(error.getSQLState().equals("23505"), error.toString());
            }
        }
    }

    static void transactions(Connection connection) throws Exception {
        connection.setAutoCommit(false);
        Statement statement = connection.createStatement();
        statement.execute("CREATE TABLE t (a int)");
        connection.commit();
        statement.execute("INSERT INTO t VALUES (1)");
        Savepoint savepoint = connection.setSavepoint();
        for (String[] wrong : new String[][] {{"SELECT 1/0", "22012"}, {"SELECT 1", "25P02"}}) {
            try {
                statement.execute(wrong[0]);
                throw new AssertionError("no error");
            } catch (SQLException error) {
                check(error.getSQLState().equals(wrong[1]), error.toString());
            }
        }
        connection.rollback(savepoint);
        connection.commit();
        connection.setTransactionIsolation(Connection.TRANSACTION_SERIALIZABLE);
        check(one(statement, "SELECT count(*) FROM t").equals(1L), "the savepoint holds");
        check(one(statement, "SHOW transaction_isolation").equals("serializable"), "isolation");
        connection.commit();
        connection.setReadOnly(true);
        try {
            statement.execute("INSERT INTO t VALUES (2)");
            throw new AssertionError("no error");
        } catch (SQLException error) {
            check(error.getSQLState().equals("25006"), error.toString());
        }
        connection.rollback();
    }

    static void portals(Connection connection) throws Exception {
        connection.setAutoCommit(false);
        try (Statement statement = connection.createStatement()) {
            statement.setFetchSize(7);
            int sum = 0;
            try (ResultSet rows = statement.executeQuery("SELECT generate_series(1, 100)")) {
                while (rows.next()) sum += rows.getInt(1);
            }
            check(sum == 5050, "all rows, seven at a time");
        }
        connection.commit();
    }

    static void copies(Connection connection) throws Exception {
        try (Statement statement = connection.createStatement()) {
            statement.execute("CREATE TABLE t (a int, b text)");
        }
        var copy = connection.unwrap(PGConnection.class).getCopyAPI();
        String rows = String.join("", Collections.nCopies(5000, "7\tseven\n"));
        check(copy.copyIn("COPY t FROM STDIN", new StringReader(rows)) == 5000, "copy in");
        StringWriter out = new StringWriter();
        check(copy.copyOut("COPY t TO STDOUT", out) == 5000 && out.toString().equals(rows), "copy out");
        try {
            copy.copyIn("COPY t FROM STDIN", new StringReader("none\n"));
            throw new AssertionError("no error");
        } catch (SQLException error) {
            check(error.getSQLState().startsWith("22"), error.toString());
        }
    }

    static void cancels(Connection connection) throws Exception {
        try (Statement statement = connection.createStatement()) {
            statement.setQueryTimeout(1);
            try {
                statement.execute("SELECT pg_sleep(600)");
                throw new AssertionError("no error");
            } catch (SQLException error) {
                check(error.getSQLState().equals("57014"), error.toString());
            }
            statement.setQueryTimeout(0);
            check(one(statement, "SELECT 1").equals(1), "it goes on");
        }
    }

    static void notices(Connection connection) throws Exception {
        try (Statement statement = connection.createStatement(); Connection other = connect("")) {
            statement.execute("DO $$ BEGIN RAISE NOTICE 'hello'; END $$");
            check(statement.getWarnings().getMessage().equals("hello"), "a notice");
            statement.execute("LISTEN news");
            other.createStatement().execute("NOTIFY news, 'first'");
            var news = connection.unwrap(PGConnection.class).getNotifications(30000);
            check(news.length == 1 && news[0].getParameter().equals("first"), "a notification");
        }
    }

    static void largeValues(Connection connection) throws Exception {
        byte[] large = new byte[16 << 20];
        Arrays.fill(large, (byte) 7);
        try (PreparedStatement statement = connection.prepareStatement("SELECT ?::bytea")) {
            statement.setBytes(1, large);
            ResultSet rows = statement.executeQuery();
            rows.next();
            check(Arrays.equals(rows.getBytes(1), large), "16 MB there and back");
        }
        connection.setAutoCommit(false);
        var objects = connection.unwrap(PGConnection.class).getLargeObjectAPI();
        long oid = objects.createLO();
        try (var object = objects.open(oid)) {
            object.write(large, 0, 1 << 20);
            object.seek(0);
            check(object.read(1 << 20).length == 1 << 20, "a large object");
        }
        connection.commit();
    }

    static void metadata(Connection connection) throws Exception {
        try (Statement statement = connection.createStatement()) {
            statement.execute("CREATE TABLE t (a int PRIMARY KEY, b text)");
        }
        ResultSet columns = connection.getMetaData().getColumns(null, "public", "t", null);
        check(columns.next() && columns.getString("COLUMN_NAME").equals("a"), "columns");
        connection.setSchema("pg_catalog");
        check(connection.getSchema().equals("pg_catalog") && connection.isValid(5), "schema");
        try (Statement statement = connection.createStatement()) {
            PreparedStatement star = connection.prepareStatement("SELECT * FROM public.t");
            for (int i = 0; i < 8; i++) star.executeQuery().close();
            if (!moves) {
                // A plan whose result changes is refused, and the driver prepares it again by itself.
                statement.execute("ALTER TABLE public.t ADD c int");
                check(star.executeQuery().getMetaData().getColumnCount() == 3, "three columns");
            }
            statement.execute("DISCARD ALL");
            star.executeQuery().close();
        }
    }

    public static void main(String[] arguments) throws Exception {
        url = arguments[0];
        moves = arguments.length > 1;
        Case[] cases = {
            Jdbc::types, Jdbc::batches, Jdbc::transactions, Jdbc::portals, Jdbc::copies, Jdbc::cancels, Jdbc::notices,
            Jdbc::largeValues, Jdbc::metadata,
        };
        for (String more : new String[] {"", "&preferQueryMode=simple", "&preferQueryMode=extendedForPrepared&prepareThreshold=1"}) {
            for (int i = 0; i < cases.length; i++) {
                // Bytes don't pass as a simple query's literal.
                if (more.contains("simple") && (i == 0 || i == 7)) continue;
                try (Connection connection = connect(more); Connection clean = connect("")) {
                    clean.createStatement().execute("DROP TABLE IF EXISTS t");
                    try {
                        cases[i].run(connection);
                    } catch (Throwable error) {
                        throw new AssertionError("case " + i + " with " + more, error);
                    }
                }
            }
        }
        System.out.println("all well");
    }
}
