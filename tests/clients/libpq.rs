//! A C program on libpq, a test for each of its cases; and ruby-pg, where it is installed.

use std::process::Command;

use crate::programs::{client, libpq_program, run, stage};
use crate::support::skip;

fn case(case: &str) {
    match libpq_program() {
        Err(why) => skip(&format!("no C compiler with libpq's headers: {why}")),
        Ok(program) => {
            let (_postgres, valet) = stage();
            run(client(program, valet.port()).arg(case));
        }
    }
}

macro_rules! cases {
    ($($case:ident)*) => { $(#[test] fn $case() { super::case(stringify!($case)); })* };
}

mod c {
    cases!(queries single_row prepared pipeline pipeline_error copy_in copy_out copy_fails large_object cancel notify notices
        two_phase nonblocking reset);
}

const RUBY: &str = r##"
    conn = PG.connect
    raise "query" unless conn.exec_params("SELECT $1::int + 1", [41]).getvalue(0, 0) == "42"
    conn.prepare("s", "SELECT $1::text")
    raise "prepared" unless conn.exec_prepared("s", ["x"]).values == [["x"]]
    conn.exec("CREATE TABLE t (a int)")
    conn.copy_data("COPY t FROM STDIN") { 1000.times { |i| conn.put_copy_data("#{i}\n") } }
    raise "copy" unless conn.exec("SELECT sum(a) FROM t").getvalue(0, 0) == "499500"
    conn.transaction { conn.exec("INSERT INTO t VALUES (1)") }
    begin; conn.exec("SELECT 1/0"); rescue PG::DivisionByZero; end
    conn.exec("LISTEN news; NOTIFY news, 'hello'")
    raise "notify" unless conn.wait_for_notify(30) { |_, _, payload| payload } == "news"
    conn.send_query("SELECT pg_sleep(600)"); conn.cancel until conn.block(0.01)
    begin; conn.get_last_result; raise "cancel"; rescue PG::QueryCanceled; end
    raise "status" unless conn.transaction_status == PG::PQTRANS_IDLE
    conn.exec("") ; conn.finish
"##;

#[test]
fn ruby_pg() {
    if !Command::new("ruby")
        .args(["-rpg", "-e", "1"])
        .output()
        .is_ok_and(|ruby| ruby.status.success())
    {
        return skip("no Ruby with the pg gem");
    }
    let (_postgres, valet) = stage();
    run(client("ruby", valet.port()).args(["-rpg", "-e", RUBY]));
}
