export { type FixtureName, fixtureNames, fixturePath, fixtures, loadFixture } from "./node/fixtures.js";
