// Checks a Dockerfile's syntax, and prints its instructions as a JSON list of [keyword, flags and arguments].
//
// Usage: dockerfile.js FILE

const { readFileSync } = require("node:fs");
const { validate } = require("dockerfile-utils");
const { DockerfileParser } = require("dockerfile-ast");

const text = readFileSync(process.argv[2], "utf8");
const problems = validate(text);
for (const { range, message } of problems) {
  console.error(`${process.argv[2]}:${range.start.line + 1}: ${message}`);
}
const instructions = DockerfileParser.parse(text).getInstructions();
const rest = (i) => [...(i.getFlags?.() ?? []).map(String), i.getArgumentsContent()].join(" ");
console.log(JSON.stringify(instructions.map((i) => [i.getKeyword(), rest(i)])));
process.exitCode = problems.length === 0 ? 0 : 1;
