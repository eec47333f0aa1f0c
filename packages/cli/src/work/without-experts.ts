import { mkdtemp, rm } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { applyPlan } from "@coppice/checkpoint";
import { folderTarget } from "@coppice/checkpoint/node";
import { CoppiceError, type Plan } from "@coppice/core";
import type { CliContext } from "../context.js";
import { type OpenModel, openModel } from "./open-model.js";

/**
 * The checkpoint of a plan, in a folder of its own beside `out` that is gone when this is disposed of.
 * @throws those of `applyPlan`
 */
export async function withoutExperts(
  opened: OpenModel,
  plan: Plan,
  out: string,
  context: CliContext,
): Promise<OpenModel> {
  const { signal } = context;
  const folder = await mkdtemp(join(dirname(out), `.${basename(out)}-`)).catch((cause) => {
    throw new CoppiceError("COPPICE_IO_WRITE", `no folder can be made beside ${out}: ${cause.message}`, {
      cause,
    });
  });
  const remove = () => rm(folder, { recursive: true, force: true });
  try {
    const path = join(folder, basename(opened.path));
    await applyPlan(opened.checkpoint, plan, folderTarget(path), { signal });
    const pruned = await openModel(path, context);
    return {
      ...pruned,
      [Symbol.asyncDispose]: async () => {
        await pruned[Symbol.asyncDispose]();
        await remove();
      },
    };
  } catch (error) {
    await remove();
    throw error;
  }
}
