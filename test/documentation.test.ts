import { existsSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative, resolve, sep } from "node:path";
import { fileURLToPath } from "node:url";
import ts from "typescript";
import { describe, expect, it } from "vitest";

const root = fileURLToPath(new URL("..", import.meta.url));
const here = fileURLToPath(new URL(".", import.meta.url));

function markdown(folder: string): string[] {
  if (!existsSync(folder)) return [];
  return readdirSync(folder, { recursive: true, encoding: "utf8" })
    .filter((name) => name.endsWith(".md") && !/(^|[\\/])(node_modules|dist)([\\/]|$)/.test(name))
    .map((name) => join(folder, name));
}

const pages = [
  ...["README.md", "CONTRIBUTING.md"].map((name) => join(root, name)).filter((path) => existsSync(path)),
  ...["docs", "packages", "examples"].flatMap((name) => markdown(join(root, name))),
].filter((path) => !path.endsWith("CHANGELOG.md"));

interface Fence {
  /** Page and line, for messages. */
  readonly where: string;
  readonly code: string;
}

function fences(path: string, language: string): Fence[] {
  const found: Fence[] = [];
  let open: { line: number; code: string[] } | undefined;
  readFileSync(path, "utf8")
    .split("\n")
    .forEach((line, i) => {
      if (open && /^\s*```\s*$/.test(line)) {
        found.push({ where: `${relative(root, path)}:${open.line}`, code: open.code.join("\n") });
        open = undefined;
      } else if (open) open.code.push(line);
      else if (line.trim() === `\`\`\`${language}`) open = { line: i + 1, code: [] };
    });
  return found;
}

/** Type errors of each fence as a module that stands beside this test, which sees every package. */
function typeErrors(blocks: readonly Fence[]): string[] {
  const config = ts.readConfigFile(join(root, "tsconfig.base.json"), ts.sys.readFile);
  const { options } = ts.parseJsonConfigFileContent(config.config, ts.sys, root);
  const files = new Map(
    blocks.map((block, i) => [
      join(here, `fence-${i}.ts`),
      { ...block, code: `${block.code}\nexport {};\n` },
    ]),
  );
  const settings = {
    ...options,
    types: ["node"],
    lib: ["lib.es2023.d.ts", "lib.esnext.disposable.d.ts", "lib.dom.d.ts"],
  };
  const host = ts.createCompilerHost(settings);
  const { fileExists, readFile, getSourceFile } = host;
  host.fileExists = (path) => files.has(resolve(path)) || fileExists(path);
  host.readFile = (path) => files.get(resolve(path))?.code ?? readFile(path);
  host.getSourceFile = (path, ...rest) => {
    const block = files.get(resolve(path));
    return block ? ts.createSourceFile(path, block.code, rest[0], true) : getSourceFile(path, ...rest);
  };
  const program = ts.createProgram([...files.keys()], settings, host);
  return [...files].flatMap(([path, { where }]) => {
    const source = program.getSourceFile(path);
    return [...program.getSyntacticDiagnostics(source), ...program.getSemanticDiagnostics(source)].map(
      ({ messageText, start = 0 }) => {
        const line = (source?.getLineAndCharacterOfPosition(start).line ?? 0) + 1;
        return `${where}, line ${line} of the fence: ${ts.flattenDiagnosticMessageText(messageText, " ")}`;
      },
    );
  });
}

describe("code in the documentation", () => {
  it("type-checks", () => {
    expect(typeErrors(pages.flatMap((page) => fences(page, "ts")))).toEqual([]);
  });

  it("would be caught if it did not", () => {
    const code = 'import { createPlan } from "@coppice/core";\nconst plan: string = createPlan(1);';
    expect(typeErrors([{ where: "x.md:1", code }])).toHaveLength(2);
  });

  it("is marked ts, not typescript, so that it is checked", () => {
    const other = pages.filter((page) =>
      /^\s*```(typescript|javascript|js|mjs)\b/m.test(readFileSync(page, "utf8")),
    );
    expect(other.map((page) => relative(root, page))).toEqual([]);
  });
});

describe("links in the documentation", () => {
  it("lead to files that exist", () => {
    const broken: string[] = [];
    for (const page of pages) {
      const text = readFileSync(page, "utf8").replace(/```[\s\S]*?```/g, "");
      for (const [, target = ""] of text.matchAll(/\]\(([^)\s]+)\)/g)) {
        if (/^[a-z]+:/.test(target) || target.startsWith("#")) continue;
        const path = resolve(dirname(page), decodeURI(target.replace(/#.*$/, "")));
        if (!existsSync(path)) broken.push(`${relative(root, page)} -> ${target}`);
      }
    }
    expect(broken).toEqual([]);
  });

  it("reach every page of docs from the README", () => {
    const reached = new Set<string>();
    const todo = [join(root, "README.md")];
    for (let page = todo.pop(); page !== undefined; page = todo.pop()) {
      if (reached.has(page) || !existsSync(page)) continue;
      reached.add(page);
      for (const [, target = ""] of readFileSync(page, "utf8").matchAll(/\]\(([^)\s#]+\.md)/g)) {
        if (!/^[a-z]+:/.test(target)) todo.push(resolve(dirname(page), target));
      }
    }
    const docs = join(root, "docs") + sep;
    expect(
      pages.filter((page) => page.startsWith(docs) && !reached.has(page)).map((page) => relative(root, page)),
    ).toEqual([]);
  });
});
