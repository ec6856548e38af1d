// lib/pq, Go's oldest driver for PostgreSQL: connects by PG* variables, a connection a case; fails by panic.
package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/lib/pq"
)

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func check(right bool, what string) {
	if !right {
		panic(what)
	}
}

func code(err error) string {
	var known *pq.Error
	if errors.As(err, &known) {
		return string(known.Code)
	}
	return fmt.Sprint(err)
}

func types(db *sql.DB) {
	statement, err := db.Prepare("SELECT $1::int + 1, $2::text, $3::timestamptz, $4::bytea, $5::int[]")
	must(err)
	at := time.Date(2020, 2, 2, 2, 2, 2, 0, time.UTC)
	for i := 0; i < 20; i++ {
		var n int
		var text string
		var when time.Time
		var bytes []byte
		var list pq.Int64Array
		must(statement.QueryRow(i, "Ünï", at, []byte{0, 255}, pq.Array([]int64{1, 2})).Scan(&n, &text, &when, &bytes, &list))
		check(n == i+1 && text == "Ünï" && when.Equal(at) && len(bytes) == 2 && len(list) == 2, "values")
	}
	must(statement.Close())
}

func transactions(db *sql.DB) {
	_, err := db.Exec("CREATE TABLE t (a int UNIQUE)")
	must(err)
	tx, err := db.BeginTx(context.Background(), &sql.TxOptions{Isolation: sql.LevelSerializable})
	must(err)
	_, err = tx.Exec("INSERT INTO t VALUES ($1)", 1)
	must(err)
	_, err = tx.Exec("INSERT INTO t VALUES ($1)", 1)
	check(code(err) == "23505", code(err))
	_, err = tx.Exec("SELECT 1")
	check(code(err) == "25P02", code(err))
	must(tx.Rollback())
	var count int
	must(db.QueryRow("SELECT count(*) FROM t").Scan(&count))
	check(count == 0, "rolled back")
}

func copies(db *sql.DB) {
	_, err := db.Exec("CREATE TABLE t (a int, b text)")
	must(err)
	tx, err := db.Begin()
	must(err)
	statement, err := tx.Prepare(pq.CopyIn("t", "a", "b"))
	must(err)
	for i := 0; i < 5000; i++ {
		_, err = statement.Exec(i, strings.Repeat("x", 50))
		must(err)
	}
	_, err = statement.Exec()
	must(err)
	must(statement.Close())
	must(tx.Commit())
	var sum int
	must(db.QueryRow("SELECT sum(a) FROM t").Scan(&sum))
	check(sum == 12497500, "all rows")
}

func cancels(db *sql.DB) {
	soon, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	_, err := db.ExecContext(soon, "SELECT pg_sleep(600)")
	check(code(err) == "57014" || errors.Is(err, context.DeadlineExceeded), code(err))
	var one int
	must(db.QueryRow("SELECT 1").Scan(&one))
}

func notifications(db *sql.DB) {
	listener := pq.NewListener("", time.Second, time.Second, nil)
	defer listener.Close()
	must(listener.Listen("news"))
	_, err := db.Exec("SELECT pg_notify('news', 'first')")
	must(err)
	select {
	case news := <-listener.Notify:
		check(news != nil && news.Extra == "first", "a notification")
	case <-time.After(30 * time.Second):
		panic("no notification")
	}
}

func largeValues(db *sql.DB) {
	large := strings.Repeat("0123456789abcdef", 1<<20)
	var back string
	must(db.QueryRow("SELECT $1::text", large).Scan(&back))
	check(back == large, "16 MB there and back")
}

// Many goroutines over a pool of connections, with statements that are prepared on each.
func pools(db *sql.DB) {
	db.SetMaxOpenConns(5)
	statement, err := db.Prepare("SELECT $1::int * 2")
	must(err)
	var group sync.WaitGroup
	for i := 0; i < 20; i++ {
		group.Add(1)
		go func(i int) {
			defer group.Done()
			for j := 0; j < 20; j++ {
				var n int
				must(statement.QueryRow(i * j).Scan(&n))
				check(n == 2*i*j, "its own answer")
			}
		}(i)
	}
	group.Wait()
	must(statement.Close())
}

func main() {
	for _, more := range []string{"", "binary_parameters=yes"} {
		for _, run := range []func(*sql.DB){types, transactions, copies, cancels, notifications, largeValues, pools} {
			db, err := sql.Open("postgres", more)
			must(err)
			_, err = db.Exec("DROP TABLE IF EXISTS t")
			must(err)
			run(db)
			must(db.Close())
		}
	}
	fmt.Fprintln(os.Stdout, "all well")
}
