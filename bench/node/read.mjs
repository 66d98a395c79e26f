// node read.mjs URL CALLERS ROUNDS SECONDS: rates of the single read, one number a round, as JSON.
import postgres from 'postgres'

const [url, callers, rounds, seconds] = process.argv.slice(2)
const sql = postgres(url, { max: 2 })
const rates = []

for (let round = -1; round < Number(rounds); round++) {
  let done = 0
  const began = performance.now()
  const until = began + Number(seconds) * 1000
  const caller = async (row) => {
    while (performance.now() < until) {
      await sql`select id, name, value, made from item where id = ${row}`
      done++
    }
  }
  await Promise.all(Array.from({ length: Number(callers) }, (_, n) => caller(1 + n * 7)))
  if (round >= 0) rates.push(Math.round(done / ((performance.now() - began) / 1000)))
}
console.log(JSON.stringify(rates))
await sql.end()
