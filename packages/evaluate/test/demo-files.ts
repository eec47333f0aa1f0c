import { readFileSync } from "node:fs";
import { join } from "node:path";
import { modelPath, type TaskName, type TaskSplit, taskPath } from "@coppice/demo-model";
import { createTokenizer, parseTask } from "@coppice/evaluate";

export function demoTask(name: TaskName, split: TaskSplit) {
  return parseTask(readFileSync(taskPath(name, split), "utf8"), `${name}.jsonl`);
}

export function demoTokenizer() {
  return createTokenizer({
    tokenizer: readFileSync(join(modelPath, "tokenizer.json"), "utf8"),
    config: readFileSync(join(modelPath, "tokenizer_config.json"), "utf8"),
  });
}
