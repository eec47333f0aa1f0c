import { cpu } from "@coppice/backend-cpu";
import { backendConformance } from "@coppice/plugin-kit";
import { fixtures } from "@coppice/plugin-kit/node";
import { describe, test } from "vitest";

describe("the cpu backend", () => {
  for (const { name, run } of backendConformance(cpu, { fixtures })) test(name, run);
});
