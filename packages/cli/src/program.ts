import { Command, type CommandUnknownOpts, Option } from "@commander-js/extra-typings";
import type { CliContext, TerminalStream } from "./context.js";
import type { OutputOptions } from "./terminal/output.js";
import { version } from "./version.js";

interface Entry {
  readonly summary: string;
  /** Each command is loaded when it is named, so that `coppice inspect` never waits for the search. */
  load(): Promise<(context: CliContext) => CommandUnknownOpts>;
}

export const commands: Readonly<Record<string, Entry>> = {
  demo: {
    summary: "run the whole job on the shipped model",
    load: async () => (await import("./commands/demo.js")).demoCommand,
  },
  inspect: {
    summary: "family, experts, sizes, and what pruning would save",
    load: async () => (await import("./commands/inspect.js")).inspectCommand,
  },
  generate: {
    summary: "continue a text",
    load: async () => (await import("./commands/generate.js")).generateCommand,
  },
  logits: {
    summary: "logits of token sequences, to compare with other runtimes",
    load: async () => (await import("./commands/logits.js")).logitsCommand,
  },
  eval: {
    summary: "score a model on a task, with a 95 % interval",
    load: async () => (await import("./commands/eval.js")).evalCommand,
  },
  calibrate: {
    summary: "collect routing statistics in one pass",
    load: async () => (await import("./commands/calibrate.js")).calibrateCommand,
  },
  stats: {
    summary: "show statistics files, or merge them",
    load: async () => (await import("./commands/stats.js")).statsCommand,
  },
  score: {
    summary: "score every expert by criteria",
    load: async () => (await import("./commands/score.js")).scoreCommand,
  },
  prune: {
    summary: "keep the experts that a criterion ranks highest",
    load: async () => (await import("./commands/prune.js")).pruneCommand,
  },
  merge: {
    summary: "merge experts into fewer, group by group",
    load: async () => (await import("./commands/merge.js")).mergeCommand,
  },
  allocate: {
    summary: "share out experts, top-k or skipping over layers",
    load: async () => (await import("./commands/allocate.js")).allocateCommand,
  },
  repair: {
    summary: "fit router rows of a plan to what the whole layers put out",
    load: async () => (await import("./commands/repair.js")).repairCommand,
  },
  search: {
    summary: "search which experts to keep and how to merge them",
    load: async () => (await import("./commands/search.js")).searchCommand,
  },
  attention: {
    summary: "decide how far back every head looks, and show such plans",
    load: async () => (await import("./commands/attention.js")).attentionCommand,
  },
  profile: {
    summary: "keep experts per task, and find the task of a prompt",
    load: async () => (await import("./commands/profile.js")).profileCommand,
  },
  trace: {
    summary: "record which experts run, and simulate caches of them",
    load: async () => (await import("./commands/trace.js")).traceCommand,
  },
  worker: {
    summary: "evaluate plans for a search that runs elsewhere",
    load: async () => (await import("./commands/worker.js")).workerCommand,
  },
  apply: {
    summary: "write the checkpoint of a plan",
    load: async () => (await import("./commands/apply.js")).applyCommand,
  },
  export: {
    summary: "write a model in the format of another runtime",
    load: async () => (await import("./commands/export.js")).exportCommand,
  },
  quantize: {
    summary: "write weights as integers of few bits",
    load: async () => (await import("./commands/quantize.js")).quantizeCommand,
  },
  verify: {
    summary: "prove that a checkpoint computes what its plan says",
    load: async () => (await import("./commands/verify.js")).verifyCommand,
  },
  serve: {
    summary: "answer requests of the OpenAI API with an exported model",
    load: async () => (await import("./commands/serve.js")).serveCommand,
  },
  plugins: {
    summary: "list the plugins that can be named here",
    load: async () => (await import("./commands/plugins.js")).pluginsCommand,
  },
  doctor: {
    summary: "describe this machine, for bug reports",
    load: async () => (await import("./commands/doctor.js")).doctorCommand,
  },
};

/** The `coppice` command; of the commands only the one that `context.argv` names is loaded. */
export async function createProgram(context: CliContext): Promise<CommandUnknownOpts> {
  const program: CommandUnknownOpts = new Command("coppice")
    .description(
      "Makes sparse mixture-of-experts language models smaller for the task you have, without gradients.",
    )
    .version(version, "-V, --version", "print the version")
    .helpOption("-h, --help", "print help")
    .helpCommand("help [command]", "print help for a command")
    .showSuggestionAfterError()
    .exitOverride()
    .configureOutput({
      writeOut: (text) => context.io.stdout.write(text),
      writeErr: (text) => context.io.stderr.write(text),
      getOutHelpWidth: () => helpWidth(context.io.stdout),
      getErrHelpWidth: () => helpWidth(context.io.stderr),
      // reportError prints the error once, in the form of all others.
      outputError: () => {},
    })
    .addHelpText("after", "\nStart with `coppice demo`, then `coppice inspect <model>`.");
  const words = context.argv.filter((word) => !word.startsWith("-"));
  const named = new Set(words.slice(0, words[0] === "help" ? 2 : 1));
  for (const [name, entry] of Object.entries(commands)) {
    if (named.has(name)) program.addCommand(await loadCommand(name, context, program));
    else program.command(name).summary(entry.summary);
  }
  return program;
}

/** A command in full, with the options that every command has. */
export async function loadCommand(
  name: string,
  context: CliContext,
  program: CommandUnknownOpts,
): Promise<CommandUnknownOpts> {
  const { load, summary } = commands[name] as Entry;
  const command = (await load())(context);
  if (!command.summary()) command.summary(summary);
  return completed(command, context, program);
}

/** The command and those below it with the settings of the program and the options that every command has. */
function completed(
  command: CommandUnknownOpts,
  context: CliContext,
  parent: CommandUnknownOpts,
): CommandUnknownOpts {
  command.copyInheritedSettings(parent).helpOption("-h, --help", "print help");
  if (command.commands.length > 0) {
    for (const below of command.commands) completed(below, context, command);
    return command.helpCommand("help [command]", "print help for a command");
  }
  return command
    .addOption(new Option("--json", "print one JSON object to stdout").helpGroup(outputGroup))
    .addOption(new Option("-q, --quiet", "no progress on stderr").helpGroup(outputGroup))
    .addOption(
      new Option("--log-format <format>", "form of messages and progress on stderr")
        .choices(["text", "json"])
        .default("text")
        .helpGroup(outputGroup),
    )
    .addOption(
      new Option("--no-color", "plain text; so does the environment variable NO_COLOR").helpGroup(
        outputGroup,
      ),
    )
    .addOption(new Option("--debug", "show stacks of errors").helpGroup(outputGroup))
    .hook("preAction", (_, command) => context.configure(command.opts() as OutputOptions));
}

/** Width of the terminal; 80 where there is none, so that redirected help is the same everywhere. */
function helpWidth({ isTTY, columns }: TerminalStream): number {
  return isTTY && columns ? columns : 80;
}

const outputGroup = "Output:";
