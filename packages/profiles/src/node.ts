export { readProfiles, writeProfiles } from "./node/profile-files.js";
