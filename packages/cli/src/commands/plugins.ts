import { Command, type CommandUnknownOpts, Option } from "@commander-js/extra-typings";
import { contractVersions } from "@coppice/core";
import type { CliContext } from "../context.js";
import { examples } from "../options.js";
import { listPlugins } from "../plugins/find-plugin.js";
import { pluginKinds } from "../plugins/plugin-manifest.js";
import { formatTable } from "../terminal/format.js";

export function pluginsCommand(context: CliContext): CommandUnknownOpts {
  return new Command("plugins")
    .description(
      "Lists the plugins that commands accept by name: built-in ones and those of packages installed where you work. " +
        "It reads package.json files and imports nothing.",
    )
    .addOption(new Option("--kind <kind>", "only plugins of this kind").choices(pluginKinds))
    .addHelpText("after", examples("coppice plugins", "coppice plugins --kind search --json"))
    .action(({ kind }) => {
      const plugins = listPlugins(context.io.cwd)
        .filter((plugin) => kind === undefined || plugin.kind === kind)
        .map((plugin) => ({ ...plugin, usable: plugin.contract === contractVersions[plugin.kind] }));
      context.out.result({ plugins }, () =>
        formatTable(
          ["kind", "name", "package", "version", "contract", "what it does"],
          plugins.map((plugin) => [
            plugin.kind,
            plugin.name,
            plugin.package,
            plugin.version,
            plugin.usable
              ? String(plugin.contract)
              : `${plugin.contract} (needs ${contractVersions[plugin.kind]})`,
            plugin.summary,
          ]),
        ),
      );
    });
}
