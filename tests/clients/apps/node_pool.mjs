// node-postgres' Pool with what docs/apps.md says for it, one case a run. Connects by PG* variables; fails by exception.

import assert from 'node:assert/strict'
import { execFile, spawnSync } from 'node:child_process'
import { promisify } from 'node:util'
import pg from 'pg'
import { declare } from './pgvalet.mjs'

const ADMIN = process.env.PGVALET_ADMIN_URL
const MODE = process.env.MODE

async function api(method, path, body) {
  const headers = { 'Content-Type': 'application/json' }
  const answer = await fetch(ADMIN + path, { method, headers, body: body && JSON.stringify(body) })
  assert.equal(answer.status, 200, await answer.clone().text())
  return answer.json()
}

async function until(what, condition) {
  for (const end = Date.now() + 30000; Date.now() < end; ) {
    const found = await condition()
    if (found) return found
  }
  throw new Error(`not within 30 s: ${what}`)
}

const shown = async (client) => (await api('GET', '/v1/sessions')).sessions.find((one) => one.session === client.processID)
const statement = { name: 'half', text: 'SELECT $1::int / 2 AS n', values: [84] }

// A pool of one connection for each: one that parks, one that rests, one that is busy, one in a transaction.
async function stage() {
  const pool = new pg.Pool({ max: 4, application_name: 'shop' })
  const tell = declare(pool, ADMIN)
  const [parked, resting, busy, inside] = await Promise.all([1, 2, 3, 4].map(() => pool.connect()))
  parked.owner = 'dispatcher'
  await parked.query("SET statement_timeout = '29s'")
  assert.equal((await parked.query(statement)).rows[0].n, 42)
  await resting.query('SELECT 1')
  resting.release()
  await inside.query('BEGIN')
  await inside.query('CREATE TABLE half_done (n int)')
  const lock = await connect()
  await lock.query('SELECT pg_advisory_lock(1)')
  const answer = busy.query('SELECT pg_advisory_xact_lock(1), 7 AS n')
  answer.catch(() => {})
  await until('busy waits', async () => (await shown(busy)).state === 'active')
  await tell()
  return { pool, tell, parked, resting, busy, inside, lock, answer }
}

async function connect() {
  const client = new pg.Client({ application_name: 'other' })
  await client.connect()
  return client
}

const outcomes = (reload, clients) => clients.map((client) => {
  const lease = reload.leases.find((one) => one.session === client.processID)
  return lease?.outcome + (lease?.reason ? `: ${lease.reason}` : '')
})

const cases = {
  // Prints what `pgvalet leaks` prints of an owner that waits with a connection in hand.
  async leaks() {
    const pool = new pg.Pool({ application_name: 'shop' })
    const tell = declare(pool, ADMIN)
    const client = await pool.connect()
    client.owner = 'dispatcher'
    await client.query('INSERT INTO jobs (name) VALUES ($1) RETURNING id', ['mail'])
    await tell()
    if (MODE === 'transaction') {
      assert.deepEqual((await api('GET', '/v1/leaks')).leaks, [])
      process.exit(0)
    }
    await until('it has parked', async () => (await api('GET', '/v1/leaks')).leaks.length)
    const one = await shown(client)
    assert.deepEqual([one.owner, one.evidence, one.claim, one.basis], ['dispatcher', 'claim', 'held', 'declared'])
    const { stdout } = await promisify(execFile)(process.env.PGVALET, ['leaks', '--admin', ADMIN])
    console.log(stdout)
    client.release()
    await tell()
    assert.equal((await shown(client)).claim, 'resting')
    await pool.end()
  },

  async reload() {
    const { pool, tell, parked, resting, busy, inside, lock, answer } = await stage()
    const reload = await api('POST', '/v1/reloads', {})
    const told = outcomes(reload, [parked, resting, busy, inside])
    if (MODE === 'session') assert.deepEqual(told, ['returned', 'resting', 'busy: a request is unanswered', 'busy: in a transaction'])
    else assert.deepEqual(told.slice(2), ['busy: a request is unanswered', 'busy: in a transaction'])
    await until('the dispatcher holds none', async () => (await shown(parked)).backend === null)
    // Somebody else takes its backend meanwhile, and leaves other settings behind.
    const other = await connect()
    await other.query("SET statement_timeout = '3s'")
    await other.end()
    assert.equal((await parked.query('SHOW statement_timeout')).rows[0].statement_timeout, '29s')
    assert.equal((await parked.query(statement)).rows[0].n, 42)
    await lock.query('SELECT pg_advisory_unlock(1)')
    assert.equal((await answer).rows[0].n, 7)
    await inside.query('COMMIT')
    assert.equal((await inside.query('SELECT count(*)::int AS n FROM half_done')).rows[0].n, 0)
    assert.equal((await pool.query('SELECT 5 AS n')).rows[0].n, 5)
    for (const client of [parked, busy, inside]) client.release()
    await tell()
    assert.equal((await shown(parked)).claim, 'resting')
    await Promise.all([pool.end(), lock.end()])
  },

  // Without listeners: what becomes of the process is for the caller to see.
  async close_unheard() {
    const pool = new pg.Pool()
    const client = await pool.connect()
    await client.query('SELECT 1')
    if (process.argv[3] === 'rests') client.release()
    await api('POST', '/v1/reloads', { method: 'close', deadline: '5s' })
    setInterval(() => {}, 1000) // until it has died
  },

  async close() {
    if (MODE === 'transaction') return // a quiet session holds no lease, and no reload ends it
    for (const how of ['rests', 'held']) {
      const died = spawnSync(process.execPath, [process.argv[1], 'close_unheard', how], { encoding: 'utf8', timeout: 30000 })
      assert.equal(died.status, 1, died.stderr)
      assert.match(died.stderr, /Unhandled 'error' event[^]*57P01/)
    }
    const pool = new pg.Pool({ max: 2 })
    declare(pool, ADMIN)
    const [held, rests] = await Promise.all([pool.connect(), pool.connect()])
    await Promise.all([held.query('SELECT 1'), rests.query('SELECT 1')])
    const removed = new Promise((resolve) => pool.once('remove', resolve))
    rests.release()
    await api('POST', '/v1/reloads', { method: 'close', deadline: '5s' })
    assert.equal(await removed, rests)
    await assert.rejects(held.query('SELECT 1'), /connection error|terminated|57P01|terminating/)
    held.release()
    assert.equal(pool.totalCount, 0)
    assert.equal((await pool.query('SELECT 5 AS n')).rows[0].n, 5)
    await pool.end()
  },
}

await cases[process.argv[2]]()
