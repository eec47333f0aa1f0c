import { lstat, realpath } from "node:fs/promises";
import { dirname, isAbsolute, join, relative, sep } from "node:path";
import { CoppiceError } from "@coppice/core";

/**
 * The absolute path of `name` inside the folder `root`. `name` uses `/` between its parts. Refused on every operating
 * system alike: absolute names, drive letters, UNC names, backslashes, NUL, empty parts, `.` and `..`, and symbolic
 * links that lead out of `root`. The file itself need not exist.
 *
 * The answer holds for the moment of the call; open the path without following links (`O_NOFOLLOW`).
 * @throws COPPICE_FORMAT_PATH
 */
export async function resolveInside(root: string, name: string): Promise<string> {
  const refuse = (why: string, cause?: unknown) =>
    new CoppiceError(
      "COPPICE_FORMAT_PATH",
      `${JSON.stringify(name.slice(0, 200))} ${why}; expected a file inside ${root}`,
      { details: { name: name.slice(0, 200) }, ...(cause === undefined ? {} : { cause }) },
    );
  if (name.includes("\0")) throw refuse("holds a NUL character");
  if (name.includes("\\")) throw refuse("holds a backslash");
  if (name.startsWith("/")) throw refuse("is absolute");
  if (/^[A-Za-z]:/.test(name)) throw refuse("names a drive");
  if (name.split("/").some((part) => part === "" || part === "." || part === "..")) {
    throw refuse("holds an empty part, . or ..");
  }
  const realRoot = await realpath(root);
  const path = join(realRoot, name);
  const real = await realOf(path);
  const way = relative(realRoot, real);
  if (way === ".." || way.startsWith(`..${sep}`) || isAbsolute(way)) {
    throw refuse(`is a link to ${real}, outside of the folder`);
  }
  return real;
}

/** Like realpath, for a path whose last parts may not exist; a link to nowhere counts as outside. */
async function realOf(path: string): Promise<string> {
  try {
    return await realpath(path);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "ENOTDIR") {
      throw new CoppiceError("COPPICE_FORMAT_PATH", `${path} leads through a file as if it were a folder`);
    }
    if (code !== "ENOENT") throw error;
    const isLink = await lstat(path).then(
      () => true,
      () => false,
    );
    if (isLink) {
      throw new CoppiceError(
        "COPPICE_FORMAT_PATH",
        `${path} is a symbolic link to a file that does not exist`,
      );
    }
    return join(await realOf(dirname(path)), path.slice(dirname(path).length + 1));
  }
}
