import { reference } from "@coppice/backend-reference";
import { backendConformance } from "@coppice/plugin-kit";
import { fixtures } from "@coppice/plugin-kit/node";
import { describe, test } from "vitest";

describe("the reference backend", () => {
  for (const { name, run } of backendConformance(reference, { fixtures })) test(name, run);
});
