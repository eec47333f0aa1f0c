import { readFileSync } from "node:fs";
import { statfs } from "node:fs/promises";
import { createRequire } from "node:module";
import { arch, availableParallelism, cpus, freemem, release, totalmem, type } from "node:os";
import { dirname, join } from "node:path";
import { Command, type CommandUnknownOpts } from "@commander-js/extra-typings";
import { contractVersions } from "@coppice/core";
import { formatBytes } from "@coppice/report";
import type { CliContext } from "../context.js";
import { examples } from "../options.js";
import { type ListedPlugin, listPlugins, loadPlugin } from "../plugins/find-plugin.js";
import { formatFacts } from "../terminal/format.js";
import { version } from "../version.js";

export function doctorCommand(context: CliContext): CommandUnknownOpts {
  return new Command("doctor")
    .description("Describes this machine and loads every plugin, for bug reports. Nothing is sent anywhere.")
    .addHelpText("after", examples("coppice doctor", "coppice doctor --json > doctor.json"))
    .action(async () => {
      const plugins = await Promise.all(
        listPlugins(context.io.cwd).map((plugin) => checkPlugin(plugin, context.io.cwd)),
      );
      const disk = await freeDisk(context.io.cwd);
      const report = {
        coppice: version,
        node: process.version,
        system: `${type()} ${release()} ${arch()}`,
        cpu: cpus()[0]?.model.trim() ?? "unknown",
        cores: availableParallelism(),
        memoryBytes: totalmem(),
        freeMemoryBytes: freemem(),
        ...(disk !== undefined && { freeDiskBytes: disk }),
        onnxruntime: onnxRuntime(),
        plugins,
      };
      context.out.result(report, () =>
        formatFacts([
          ["coppice", report.coppice],
          ["node", report.node],
          ["system", report.system],
          ["processor", `${report.cpu}, ${report.cores} cores`],
          ["memory", `${formatBytes(report.memoryBytes)}, ${formatBytes(report.freeMemoryBytes)} free`],
          ["disk", disk === undefined ? "unknown" : `${formatBytes(disk)} free where you are`],
          [
            "onnxruntime",
            "version" in report.onnxruntime
              ? `${report.onnxruntime.version}, providers ${report.onnxruntime.providers.join(", ")}`
              : `not available: ${report.onnxruntime.problem}`,
          ],
          ...plugins.map(
            (plugin) =>
              [
                `${plugin.kind} ${plugin.name}`,
                `${plugin.package} ${plugin.version}: ${plugin.problem ?? "works"}`,
              ] as const,
          ),
        ]),
      );
    });
}

type CheckedPlugin = ListedPlugin & { readonly problem?: string };

async function checkPlugin(listed: ListedPlugin, cwd: string): Promise<CheckedPlugin> {
  try {
    if (listed.contract !== contractVersions[listed.kind]) {
      return { ...listed, problem: `written for contract ${listed.contract}` };
    }
    const { plugin } = await loadPlugin(listed.kind, listed.name, cwd);
    // A backend with its default options shows whether its native library loads; the other kinds need a model.
    if (plugin.kind === "backend") await plugin.create({}, undefined as never);
    return listed;
  } catch (error) {
    return { ...listed, problem: error instanceof Error ? error.message : String(error) };
  }
}

async function freeDisk(path: string): Promise<number | undefined> {
  try {
    const { bavail, bsize } = await statfs(path);
    return bavail * bsize;
  } catch {
    return undefined;
  }
}

/** Found through the CPU backend, whose dependency it is. */
function onnxRuntime(): { version: string; providers: string[] } | { problem: string } {
  try {
    const cpuBackend = createRequire(import.meta.url).resolve("@coppice/backend-cpu/package.json");
    const load = createRequire(cpuBackend);
    const runtime = load("onnxruntime-node") as { listSupportedBackends?(): { name: string }[] };
    const manifest = join(dirname(load.resolve("onnxruntime-node")), "..", "package.json");
    const { version } = JSON.parse(readFileSync(manifest, "utf8")) as { version: string };
    return { version, providers: runtime.listSupportedBackends?.().map(({ name }) => name) ?? ["cpu"] };
  } catch (error) {
    return { problem: error instanceof Error ? (error.message.split("\n")[0] ?? "") : String(error) };
  }
}
