/**
 * Replaces values of valid JSON text in place and leaves every other character as it is. Parsing and writing
 * anew would not do: it turns `1000000.0` into `1000000`, which strict readers of Python refuse for a float.
 * @param replace path of the value, keys joined by dots, and the JSON text that takes its place; paths that the text
 * does not have are left out, a key that stands twice is replaced twice
 * @param insert path and JSON text of values that the text does not have; they come first in their object
 */
export function replaceJsonValues(
  text: string,
  replace: ReadonlyMap<string, string>,
  insert: ReadonlyMap<string, string> = new Map(),
): string {
  const path: string[] = [];
  /** For every open bracket, whether it is an object. */
  const objects: boolean[] = [];
  let result = "";
  let copied = 0;
  let expectsKey = false;
  /** Start of the value whose path is wanted, and what replaces it. */
  let open: { start: number; depth: number; replacement: string } | undefined;
  const finish = (end: number) => {
    if (!open || objects.length > open.depth) return;
    result += text.slice(copied, open.start) + open.replacement;
    copied = text.slice(open.start, end).trimEnd().length + open.start;
    open = undefined;
  };
  for (let at = 0; at < text.length; at++) {
    const char = text[at];
    if (char === '"') {
      const start = at;
      for (at++; text[at] !== '"'; at++) if (text[at] === "\\") at++;
      if (!expectsKey) continue;
      expectsKey = false;
      path[objects.length - 1] = JSON.parse(text.slice(start, at + 1)) as string;
    } else if (char === ":") {
      const replacement = objects.every(Boolean)
        ? replace.get(path.slice(0, objects.length).join("."))
        : undefined;
      if (replacement === undefined || open) continue;
      const start = at + 1 + (/^\s*/.exec(text.slice(at + 1, at + 64)) as RegExpExecArray)[0].length;
      open = { start, depth: objects.length, replacement };
    } else if (char === "{" || char === "[") {
      objects.push(char === "{");
      expectsKey = char === "{";
      if (!expectsKey || open || !objects.every(Boolean)) continue;
      const parent = path
        .slice(0, objects.length - 1)
        .map((key) => `${key}.`)
        .join("");
      const added = [...insert].filter(([name]) => name.slice(0, name.lastIndexOf(".") + 1) === parent);
      if (added.length === 0) continue;
      const isEmpty = /^\s*\}/.test(text.slice(at + 1));
      result += text.slice(copied, at + 1);
      copied = at + 1;
      result += added
        .map(([name, value]) => `${JSON.stringify(name.slice(parent.length))}: ${value}`)
        .join(", ");
      if (!isEmpty) result += ", ";
    } else if (char === "," || char === "}" || char === "]") {
      finish(at);
      if (char === ",") expectsKey = objects.at(-1) === true;
      else objects.pop();
    }
  }
  return result + text.slice(copied);
}
