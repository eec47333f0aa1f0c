import { hostname } from "node:os";
import { Command, type CommandUnknownOpts } from "@commander-js/extra-typings";
import { CoppiceError } from "@coppice/core";
import { createWorkServer } from "@coppice/evaluate";
import type { CliContext } from "../context.js";
import { attentionPlanOption, backendOption, backendSetOption, examples, workersOption } from "../options.js";
import { findPlugin } from "../plugins/find-plugin.js";
import { chooseAttentionPlan } from "../work/attention-plan-file.js";
import { openPool } from "../work/model-pool.js";
import { numericsOf } from "../work/numerics.js";
import { openModel } from "../work/open-model.js";
import { engineOf, underAttention } from "../work/work-pool.js";

export function workerCommand(context: CliContext): CommandUnknownOpts {
  return new Command("worker")
    .description(
      "Evaluates plans for a search that runs elsewhere: from a queue in Redis until it is interrupted, or the one batch " +
        "of a request file. It refuses work for another model, attention plan, backend or release.",
    )
    .argument("<model>", "checkpoint folder, the same model as that of the search")
    .option("--redis <url>", "take work from the queue at redis://[user:password@]host[:port][/database]")
    .option("--queue <name>", "name of the queue; default: coppice")
    .option("--request <file>", "answer this request file, and end")
    .option("--result <file>", "where the answers to --request go")
    .addOption(attentionPlanOption)
    .addOption(backendOption)
    .addOption(backendSetOption)
    .addOption(workersOption)
    .addHelpText(
      "after",
      examples(
        "coppice worker ./model --redis redis://10.0.0.1:6379",
        "coppice worker ./model --request request.json --result result.json",
      ),
    )
    .action(async (path, options) => {
      const { redis, queue, request, result } = options;
      if (
        (redis === undefined) === (request === undefined) ||
        (request === undefined) !== (result === undefined)
      ) {
        throw new CoppiceError("COPPICE_USAGE", "expected either --redis, or --request and --result");
      }
      await using opened = await openModel(path, context);
      const attention = await chooseAttentionPlan(opened, options.attention, context);
      await using pool = await openPool(opened, options, context);
      const worker = `${hostname()}:${process.pid}`;
      await using server = createWorkServer({
        pool: underAttention(pool, attention),
        engine: engineOf(
          findPlugin("backend", options.backend, context.io.cwd),
          options.backendSet,
          attention,
        ),
        worker,
        numerics: await numericsOf(pool, pool.model),
      });
      let done = 0;
      if (request !== undefined && result !== undefined) {
        const { answerWorkFile } = await import("@coppice/executor-command");
        const files = { request: context.path(request), result: context.path(result) };
        done = await answerWorkFile({ ...files, server, signal: context.signal });
      } else {
        const { startBullmqWorker } = await import("@coppice/executor-bullmq");
        await using running = await startBullmqWorker({
          redis: redis as string,
          server,
          worker,
          signal: context.signal,
          onAnswer: (answer) => {
            done = answer.done;
            context.out.note(`${answer.done} ${answer.id}${answer.failed ? " failed" : ""}`);
          },
          onProblem: problems((text) => context.out.warn(text)),
          ...(queue !== undefined && { queue }),
        });
        context.out.note(`Ready: ${worker} waits for work. Ctrl-C hands work back and ends.`);
        await running.done;
      }
      context.out.result({ worker, done }, () => `${done} plans answered`);
    });
}

/** A lost connection repeats its error at every attempt: the same text is told once a minute at most. */
function problems(warn: (text: string) => void): (error: Error) => void {
  const told = new Map<string, number>();
  return (error) => {
    const text = error.message || String((error as NodeJS.ErrnoException).code ?? error);
    const now = performance.now();
    if (now - (told.get(text) ?? Number.NEGATIVE_INFINITY) < 60_000) return;
    if (told.size > 100) told.clear();
    told.set(text, now);
    warn(`Redis: ${text}; trying again`);
  };
}
