// node-postgres, one case a run: `node node_postgres.mjs CASE`. Connects by PG* variables; fails by exception.

import assert from 'node:assert/strict'
import { once } from 'node:events'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import pg from 'pg'
import { from as copyFrom, to as copyTo } from 'pg-copy-streams'
import Cursor from 'pg-cursor'
import QueryStream from 'pg-query-stream'

async function connect(options = {}) {
  const client = new pg.Client(options)
  await client.connect()
  return client
}

const cases = {
  async queries(client) {
    const { rows } = await client.query('SELECT $1::int + 1 AS n, $2::text AS t', [41, 'text'])
    assert.deepEqual(rows, [{ n: 42, t: 'text' }])
    const results = await client.query('SELECT 1 AS a; SELECT 2 AS b')
    assert.deepEqual(results.map((result) => result.rows), [[{ a: 1 }], [{ b: 2 }]])
    assert.deepEqual((await client.query('')).rows, [])
    await assert.rejects(client.query('SELECT 1/0'), { code: '22012' })
    const queued = await Promise.all(Array.from({ length: 100 }, (_, i) => client.query('SELECT $1::int AS i', [i])))
    assert.deepEqual(queued.map((result) => result.rows[0].i), Array.from({ length: 100 }, (_, i) => i))
  },

  async prepared(client) {
    for (let i = 0; i < 20; i++) {
      const { rows } = await client.query({ name: 'add', text: 'SELECT $1::int + 1 AS n', values: [i] })
      assert.equal(rows[0].n, i + 1)
    }
    const names = await client.query("SELECT name FROM pg_prepared_statements WHERE name = 'add'")
    assert.equal(names.rowCount, 1)
  },

  async transactions(client) {
    await client.query('CREATE TABLE t (a int)')
    await client.query('BEGIN')
    await client.query('INSERT INTO t VALUES (1)')
    await assert.rejects(client.query('SELECT 1/0'))
    await assert.rejects(client.query('SELECT 1'), { code: '25P02' })
    await client.query('ROLLBACK')
    assert.equal((await client.query('SELECT count(*)::int AS n FROM t')).rows[0].n, 0)
  },

  async cursor(client) {
    const cursor = client.query(new Cursor('SELECT generate_series(1, 10) AS n'))
    assert.equal((await cursor.read(4)).length, 4)
    assert.equal((await cursor.read(10)).length, 6)
    await cursor.close()
    const early = client.query(new Cursor('SELECT generate_series(1, 1000) AS n'))
    await early.read(1)
    await early.close()
    assert.equal((await client.query('SELECT 1 AS n')).rows[0].n, 1)
  },

  async stream(client) {
    let sum = 0
    for await (const row of client.query(new QueryStream('SELECT generate_series(1, 1000) AS n', [], { batchSize: 64 }))) sum += row.n
    assert.equal(sum, 500500)
  },

  async copy(client) {
    await client.query('CREATE TABLE t (a int)')
    const lines = Array.from({ length: 5000 }, (_, i) => `${i}\n`)
    await pipeline(Readable.from(lines), client.query(copyFrom('COPY t FROM STDIN')))
    let text = ''
    for await (const chunk of client.query(copyTo('COPY (SELECT a FROM t ORDER BY a) TO STDOUT'))) text += chunk
    assert.equal(text, lines.join(''))
    await assert.rejects(pipeline(Readable.from(['no number\n']), client.query(copyFrom('COPY t FROM STDIN'))), { code: '22P02' })
    assert.equal((await client.query('SELECT count(*)::int AS n FROM t')).rows[0].n, 5000)
  },

  async cancel(client) {
    const other = await connect()
    const query = new pg.Query('SELECT pg_sleep(600)')
    const failed = once(query, 'error')
    client.query(query)
    const active = "SELECT count(*)::int AS n FROM pg_stat_activity WHERE state = 'active' AND query = 'SELECT pg_sleep(600)'"
    while ((await other.query(active)).rows[0].n === 0);
    new pg.Client().cancel(client, query)
    assert.equal((await failed)[0].code, '57014')
    assert.equal((await client.query('SELECT 1 AS n')).rows[0].n, 1)
    await other.end()
  },

  async notify(client) {
    const other = await connect()
    await client.query('LISTEN news')
    const heard = once(client, 'notification')
    await other.query("NOTIFY news, 'hello'")
    assert.equal((await heard)[0].payload, 'hello')
    await other.end()
  },

  async notices(client) {
    const heard = once(client, 'notice')
    await client.query("DO $$ BEGIN RAISE NOTICE 'hello'; END $$")
    assert.equal((await heard)[0].message, 'hello')
  },

  async pool() {
    const pool = new pg.Pool({ max: 5 })
    const answers = await Promise.all(Array.from({ length: 100 }, (_, i) => pool.query('SELECT $1::int AS i', [i])))
    assert.deepEqual(answers.map((answer) => answer.rows[0].i), Array.from({ length: 100 }, (_, i) => i))
    await pool.end()
  },

  async large_value(client) {
    const data = Buffer.alloc(16 * 1024 * 1024, 'abc')
    assert.deepEqual((await client.query('SELECT $1::bytea AS d', [data])).rows[0].d, data)
  },

  async settings() {
    const client = await connect({ options: '-c search_path=pg_catalog', application_name: 'app', statement_timeout: 12000 })
    const shown = async (name) => (await client.query(`SHOW ${name}`)).rows[0][name]
    assert.deepEqual([await shown('search_path'), await shown('application_name'), await shown('statement_timeout')],
      ['pg_catalog', 'app', '12s'])
    await client.end()
  },
}

const client = await connect()
await cases[process.argv[2]](client)
await client.end()
