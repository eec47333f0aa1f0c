import { existsSync } from "node:fs";
import { basename } from "node:path";
import { Command, type CommandUnknownOpts, Option } from "@commander-js/extra-typings";
import { CoppiceError } from "@coppice/core";
import { isExportedFolder, openModelFolder } from "@coppice/runtime/node";
import { isLocalHost, type RequestRecord, serveModel } from "@coppice/serve";
import type { CliContext } from "../context.js";
import { dtypeOption, examples, numberIn, wholeNumber } from "../options.js";

const keyVariable = "COPPICE_API_KEY";

export function serveCommand(context: CliContext): CommandUnknownOpts {
  return new Command("serve")
    .description(
      "Answers requests of the OpenAI API with an exported model, until it is interrupted: /v1/chat/completions, " +
        "/v1/completions, /v1/models and /health. Only this machine reaches it, unless --host says otherwise.",
    )
    .argument("<folder>", "folder that `coppice export --format onnx` wrote")
    .option("--host <address>", "address to listen on", "127.0.0.1")
    .addOption(new Option("--port <n>", "0 takes a free one").argParser(wholeNumber(0)).default(8080))
    .option(
      "--api-key <key>",
      `what requests must carry; or set ${keyVariable}, which no list of processes shows`,
    )
    .option("--name <name>", "how requests call the model; default: the folder's name")
    .addOption(
      new Option("--parallel <n>", "requests that run at the same time").argParser(wholeNumber(1)).default(4),
    )
    .addOption(
      new Option("--queue <n>", "requests that wait; more get status 429")
        .argParser(wholeNumber(0))
        .default(64),
    )
    .addOption(new Option("--threads <n>", "default: one per core").argParser(wholeNumber(1)))
    .addOption(
      new Option("--slow-client <seconds>", "cut off who reads nothing of a stream for so long")
        .argParser(numberIn(1, 86_400))
        .default(30),
    )
    .addOption(dtypeOption)
    .addHelpText(
      "after",
      examples(
        "coppice serve ./model-onnx",
        "coppice serve ./model-onnx --port 9000 --parallel 2",
        `${keyVariable}=secret coppice serve ./model-onnx --host 0.0.0.0`,
      ),
    )
    .action(async (path, options) => {
      const { host, port, parallel, queue, threads, slowClient, dtype } = options;
      const folder = context.path(path);
      if (!existsSync(folder)) {
        throw new CoppiceError("COPPICE_FORMAT_MISSING_FILE", `there is no folder ${folder}`);
      }
      if (!(await isExportedFolder(folder))) {
        throw new CoppiceError("COPPICE_USAGE", `${path} is no exported folder: it has no onnx/*.onnx`, {
          hint: context.commandLine("export", path, "--format", "onnx", "--out", `${path}-onnx`),
        });
      }
      const apiKey = options.apiKey ?? context.io.env[keyVariable];
      const totals = { requests: 0, failed: 0, promptTokens: 0, completionTokens: 0 };
      await using model = await openModelFolder(folder, {
        // Of as many conversations as run at the same time, the next turn finds the one before.
        keptPrefixes: parallel,
        signal: context.signal,
        ...(threads !== undefined && { threads }),
        ...(dtype !== undefined && { dtype }),
      });
      const name = options.name ?? basename(folder);
      await using server = await serveModel({
        model,
        name,
        host,
        port,
        parallel,
        queue,
        slowClientSeconds: slowClient,
        ...(apiKey !== undefined && { apiKey }),
        onRequest: (record) => {
          totals.requests++;
          if (record.status >= 400) totals.failed++;
          totals.promptTokens += record.promptTokens;
          totals.completionTokens += record.completionTokens;
          report(record, context);
        },
      });
      if (!isLocalHost(host) && apiKey === undefined) {
        context.out.warn(
          `everybody who reaches ${host} can use the model; set ${keyVariable} to ask for a key`,
        );
      }
      context.out.note(`Ready: ${server.url}/v1 answers for the model "${name}". Ctrl-C ends it.`);
      await new Promise<void>((resolve) => {
        if (context.signal.aborted) resolve();
        context.signal.addEventListener("abort", () => resolve(), { once: true });
      });
      await server.close();
      context.out.result({ url: server.url, ...totals }, () => `${totals.requests} requests answered`);
    });
}

function report(
  { method, path, status, seconds, error, ...tokens }: RequestRecord,
  context: CliContext,
): void {
  const counts =
    tokens.completionTokens > 0 ? `, ${tokens.promptTokens} + ${tokens.completionTokens} tokens` : "";
  context.out.note(`${method} ${path.slice(0, 100)} ${status}, ${seconds.toFixed(2)} s${counts}`);
  if (error !== undefined) context.out.warn(error instanceof Error ? error.message : String(error));
}
