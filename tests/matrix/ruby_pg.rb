# frozen_string_literal: true

# What the gem pg sees and is told, a line each: the same with and without pgvalet.

require 'pg'

def say(what, *values)
  puts "#{what}: #{values.map(&:inspect).join(' ')}"
end

def refused(what)
  yield
  say what, 'no error'
rescue PG::Error => e
  result = e.result
  say what, e.class, result && result.error_field(PG::Result::PG_DIAG_SQLSTATE), result&.error_message
end

def values_and_types(db)
  db.prepare('plus', 'SELECT $1::int + 1 AS n, $2::text AS t, $3::bytea AS b, $4::numeric AS x, $5::int[] AS a')
  5.times do |n|
    result = db.exec_prepared('plus', [n, "Ünï #{n}", { value: "\x00\xFF".b, format: 1 }, '1e-20', '{1,2}'])
    say 'prepared', result.values, result.fields, 5.times.map { |column| result.ftype(column) }
  end
  say 'described', db.describe_prepared('plus').nparams, db.describe_prepared('plus').paramtype(3)
  say 'binary', db.exec_params('SELECT $1::int8, $2::bytea', [{ value: [7].pack('q>'), format: 1, type: 20 }, 'x'], 1).values
  say 'mapped', db.exec('SELECT 1, 2.5::float8, true, NULL, now() IS NOT NULL').map_types!(PG::BasicTypeMapForResults.new(db)).values
  db.exec('DEALLOCATE plus')
  refused('deallocated') { db.exec_prepared('plus', []) }
end

def transactions(db)
  db.exec('CREATE TABLE t (a int UNIQUE)')
  refused('unique') { db.transaction { |inner| 2.times { inner.exec('INSERT INTO t VALUES (1)') } } }
  say 'rolled back', db.exec('SELECT count(*) FROM t').values, db.transaction_status
  db.exec('BEGIN')
  refused('division') { db.exec('SELECT 1/0') }
  say 'failed', db.transaction_status
  refused('in a failed one') { db.exec('SELECT 1') }
  db.exec('ROLLBACK; BEGIN; INSERT INTO t VALUES (2); SAVEPOINT s; INSERT INTO t VALUES (3); ROLLBACK TO s; COMMIT')
  say 'savepoint', db.exec('TABLE t').values
end

def copies(db)
  db.exec('CREATE TABLE c (a int, b text)')
  status = db.copy_data('COPY c FROM STDIN') { 1000.times { |n| db.put_copy_data("#{n}\tx#{n}\n") } }
  say 'copied', status.cmd_tuples
  rows = []
  db.copy_data('COPY (SELECT * FROM c ORDER BY a LIMIT 3) TO STDOUT') { while (row = db.get_copy_data) do rows << row end }
  say 'copied out', rows
  refused('a bad row') { db.copy_data('COPY c FROM STDIN') { db.put_copy_data("no number\tx\n") } }
  refused('given up') { db.copy_data('COPY c FROM STDIN') { raise ArgumentError, 'enough' } }
rescue ArgumentError => e
  say 'given up', e.message, db.exec('SELECT count(*) FROM c').values
end

def notices_and_news(db)
  notices = []
  db.set_notice_processor { |text| notices << text }
  db.exec("DO $$ BEGIN RAISE NOTICE 'hello'; RAISE WARNING 'careful'; END $$")
  say 'notices', notices
  db.exec('LISTEN news')
  db.exec("NOTIFY news, 'first'")
  db.wait_for_notify(30) { |channel, pid, payload| say 'news', channel, pid == db.backend_pid, payload }
  db.exec('UNLISTEN *')
end

def large_objects(db)
  db.transaction do
    oid = db.lo_creat
    object = db.lo_open(oid, PG::INV_READ | PG::INV_WRITE)
    db.lo_write(object, 'abc' * 10_000)
    db.lo_lseek(object, 3, PG::SEEK_SET)
    say 'large object', db.lo_read(object, 7), db.lo_tell(object)
    db.lo_close(object)
    db.lo_unlink(oid)
  end
end

def pipelines(db)
  db.enter_pipeline_mode
  db.send_query_params('SELECT $1::int', [1])
  db.send_prepare('p', 'SELECT $1::int / $2::int')
  db.send_query_prepared('p', [4, 2])
  db.send_query_prepared('p', [4, 0])
  db.send_query_prepared('p', [4, 1])
  db.pipeline_sync
  db.send_query_prepared('p', [9, 3])
  db.pipeline_sync
  syncs = 0
  while syncs < 2
    result = db.get_result
    unless result
      say "answered"
      next
    end

    syncs += 1 if result.result_status == PG::PGRES_PIPELINE_SYNC
    say 'pipeline', result.res_status(result.result_status), result.result_status == PG::PGRES_TUPLES_OK ? result.values : nil
  end
  db.exit_pipeline_mode
end

def rows_one_by_one(db)
  db.send_query('SELECT generate_series(1, 500)')
  db.set_single_row_mode
  sum = 0
  while (result = db.get_result)
    result.check
    result.each { |row| sum += row.values.first.to_i }
  end
  say 'rows', sum
  db.send_query('SELECT 1; SELECT 2/0; SELECT 3')
  say 'several', db.get_result.values, db.get_result.error_field(PG::Result::PG_DIAG_SQLSTATE), db.get_result
end

def cancels(db)
  db.send_query('SELECT pg_sleep(600)')
  # Until PostgreSQL runs it, a cancel may come too soon: it is repeated.
  db.cancel until db.block(0.1)
  say 'cancelled', db.get_last_result.values
rescue PG::QueryCanceled => e
  say 'cancelled', e.result.error_field(PG::Result::PG_DIAG_SQLSTATE)
  db.discard_results
end

def settings(db)
  say 'parameters', %w[server_version client_encoding DateStyle TimeZone integer_datetimes standard_conforming_strings
                       application_name].to_h { |name| [name, db.parameter_status(name)] }
  db.set_client_encoding('LATIN1')
  say 'latin', db.exec("SELECT 'ü'::text".encode('ISO-8859-1')).values, db.parameter_status('client_encoding'), db.internal_encoding
  db.set_client_encoding('UTF8')
  db.exec("SET TimeZone = 'Asia/Tokyo'; SET search_path = pg_catalog; SET app.tenant = 'acme'")
  say 'set', db.exec("SELECT current_setting('TimeZone'), current_setting('search_path'), current_setting('app.tenant')").values
  say 'told', db.parameter_status('TimeZone')
  db.exec('RESET ALL')
  say 'reset', db.exec("SELECT current_setting('TimeZone'), current_setting('search_path')").values, db.parameter_status('TimeZone')
  db.reset
  say 'connected again', db.exec('SELECT 1').values
end

CASES = %i[values_and_types transactions copies notices_and_news large_objects pipelines rows_one_by_one cancels settings].freeze

CASES.each do |name|
  puts "-- #{name}"
  db = PG.connect
  db.set_notice_processor { |_| nil }
  db.exec('DROP TABLE IF EXISTS t; DROP TABLE IF EXISTS c')
  send(name, db)
  db.close
end
refused('nobody') { PG.connect(dbname: 'nowhere') }
