// Models under ONNX Runtime Web, as WebAssembly, in Node.js:
//
//     npm install --no-save onnxruntime-web
//     node tools/onnxruntime_web.mjs 1x3x512x512 model.onnx model.patched.onnx
//
// Each in a process of its own, two threads, one input of the given sizes. Prints a Markdown table:
// what the process grew by while loading and at most, seconds of the second run, and the sum of
// the output, which is the same where the model computes the same. WebAssembly addresses 4 GiB.

import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { basename } from "node:path";
import { argv, env, execPath, exit, memoryUsage, resourceUsage, stderr } from "node:process";
import { fileURLToPath } from "node:url";

const RUNS = 2;
const mebibytes = (bytes) => Math.round(bytes / 2 ** 20);

async function measure(shape, file) {
  const ort = await import("onnxruntime-web");
  ort.env.wasm.numThreads = 2;
  ort.env.logLevel = "error";
  const dims = shape.split("x").map(Number);
  const values = new Float32Array(dims.reduce((a, b) => a * b)).map((_, i) => Math.sin(0.37 * i));
  const before = memoryUsage().rss;
  const session = await ort.InferenceSession.create(new Uint8Array(readFileSync(file)), {
    executionProviders: ["wasm"],
    enableMemPattern: false,
  });
  const loading = memoryUsage().rss - before;
  const input = new ort.Tensor("float32", values, dims);
  let seconds = 0;
  let sum = 0;
  for (let run = 0; run < RUNS; run++) {
    const begin = performance.now();
    const found = await session.run({ [session.inputNames[0]]: input });
    seconds = (performance.now() - begin) / 1000;
    sum = found[session.outputNames[0]].data.reduce((a, b) => a + b, 0);
  }
  const whole = 1024 * resourceUsage().maxRSS - before;
  return { loading, whole, seconds, sum };
}

function measureApart(shape, file) {
  const done = spawnSync(execPath, [fileURLToPath(import.meta.url), shape, file], {
    encoding: "utf8",
    env: { ...env, PATCHCONV_WEB_CHILD: "1" },
  });
  const line = done.stdout.split("\n").find((each) => each.startsWith("{"));
  const found = line === undefined ? { error: `exit code ${done.status}` } : JSON.parse(line);
  if (found.error) {
    return `| ${basename(file)} | failed: ${found.error} | | | |`;
  }
  const { loading, whole, seconds, sum } = found;
  const cells = [mebibytes(loading), mebibytes(whole), seconds.toFixed(2), sum.toPrecision(9)];
  return `| ${basename(file)} | ${cells.join(" | ")} |`;
}

const [shape, ...files] = argv.slice(2);
if (!/^\d+(x\d+)*$/.test(shape ?? "") || !files.length) {
  stderr.write("usage: node tools/onnxruntime_web.mjs 1x3x512x512 MODEL.onnx...\n");
  exit(2);
}
if (env.PATCHCONV_WEB_CHILD) {
  let found;
  try {
    found = await measure(shape, files[0]);
  } catch (error) {
    found = { error: String(error.message ?? error).split("\n")[0].slice(0, 300) };
  }
  console.log(JSON.stringify(found));
  exit(0);
}
console.log("| | loading, MiB | whole process, MiB | time, s | sum of the output |");
console.log("|---|---|---|---|---|");
for (const file of files) {
  console.log(measureApart(shape, file));
}
