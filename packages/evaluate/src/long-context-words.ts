/** Common nouns of one or two syllables: keys of retrieval tasks, and what neutral sentences are about. */
export const nouns: readonly string[] = (
  "acorn anchor apple apron arrow autumn badge bakery balcony banner barley barrel basin basket beacon bell bench berry " +
  "blanket blossom board boat bottle boulder bracelet branch bread brick bridge brook broom brush bucket button cabin cactus " +
  "camel candle canoe canvas canyon carpet carrot castle cave cedar cellar chain chair chalk chapel cherry chest chimney cinder " +
  "clay cliff clock cloud clover coast coat cobble coin comet compass copper coral corner cotton cradle crane crater crayon cricket " +
  "crown crystal curtain daisy desert diary dinner donkey door dragon drawer dress drum eagle earth echo elbow engine fabric falcon " +
  "farmer feather fence fern ferry fiddle field finger flame flower flute forest fork fossil fountain fox frame garden garlic gate " +
  "ginger glacier glass glove goose grain granite grape gravel grove guitar hammer harbor harp harvest hazel helmet heron hill hinge " +
  "honey hornet horse island ivory ivy jacket jade jar jewel jungle kennel kettle key kitchen kite ladder lake lamp lantern lark " +
  "leather lemon lens letter lily linen lion lizard lobster locket lumber magnet maple marble market marsh meadow melon mill mirror " +
  "mitten moon moss motor mountain needle nest night nut oak oasis oat ocean olive onion orbit orchard otter oven owl paddle paint " +
  "palace panther paper parrot path peach pearl pebble pencil pepper piano pigeon pillow pine planet plaza plum pocket pond poppy " +
  "potato powder prairie puddle pumpkin puzzle quarry quartz quilt rabbit radish raft rail rain ranch raven reef ribbon rice ridge " +
  "river robin rocket roof rope rose ruby saddle sail salad salmon sand sandal satin saucer scarf school shadow shark shelf shell " +
  "shore shovel silk silver slate sleeve smoke snail snow soap sparrow spear spice spider spoon spring spruce square squash stable " +
  "star statue steam stem stone stool storm stove straw stream sugar summer sunset swan sword table tailor tent thimble thorn thread " +
  "thunder ticket tiger timber tomato torch tower trail train trumpet tulip tunnel turnip turtle valley vase velvet village vine violet " +
  "violin wagon walnut water weasel whale wheat wheel whistle willow window winter wolf wood yarn zebra"
).split(" ");

export const adjectives: readonly string[] = (
  "amber ancient bitter bold brave bright broad broken calm clever cold cosy crooked dark deep dry dusty early empty faint " +
  "fancy fast fine flat fresh gentle golden grand green happy heavy hidden hollow huge humble icy idle jolly keen kind large " +
  "late lazy light little lonely long loud lucky mellow mild misty modest muddy narrow noble old pale plain polite proud quick " +
  "quiet rapid rare rough round rusty salty sharp shiny short silent simple slow small smooth soft solid spare steady steep " +
  "strong sunny sweet swift tall tame thick thin tiny vast warm weak wide wild wise young"
).split(" ");

export const firstNames: readonly string[] = (
  "Ada Alma Amir Anna Ben Bruno Clara Dara Elias Emma Felix Grace Hugo Ines Ivan Jonas Julia Kofi Lena Luis Mara Mira Nils Nora " +
  "Omar Oscar Paula Petra Rosa Ruth Samir Selma Simon Tara Theo Vera Yara Zoe"
).split(" ");

/** Two of these make a family name that no text has: what a model learned of people is of no help. */
export const nameParts: readonly (readonly string[])[] = [
  "Bar Cal Dal Fen Gar Hol Kel Lor Man Mor Nar Pel Ran Sel Tam Tor Val Ver Wen Zan".split(" "),
  "bek dal der fen gan hart kin lan mar mond nor per rik sen tan tric van wick zel".split(" "),
];

export const jobs: readonly string[] = (
  "baker barber butcher carpenter chemist cook dentist driver farmer gardener judge lawyer mason miller nurse painter pilot " +
  "plumber potter sailor tailor teacher waiter writer"
).split(" ");

export const cities: readonly string[] = (
  "Athens Berlin Cairo Dublin Geneva Havana Helsinki Lima Lisbon London Madrid Manila Moscow Nairobi Oslo Paris Prague Pretoria " +
  "Rome Seoul Tokyo Tunis Vienna Warsaw"
).split(" ");

export const foods: readonly string[] =
  "apples beans bread cheese eggs fish grapes honey lentils noodles nuts olives pasta pears plums rice salad soup".split(
    " ",
  );

export const animals: readonly string[] =
  "cats chickens cows dogs donkeys ducks geese goats horses parrots pigs ponies rabbits sheep turtles".split(
    " ",
  );
