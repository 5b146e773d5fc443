"""Names and words for questions. Within each of CITIES, PEOPLE, WORKPLACES and WORDS no word contains another."""

from random import Random

CITIES = (
    "Amsterdam", "Athens", "Auckland", "Baghdad", "Bangkok", "Barcelona", "Belgrade", "Berlin", "Bogota", "Bordeaux",
    "Boston", "Brisbane", "Brussels", "Budapest", "Cairo", "Calgary", "Chicago", "Copenhagen", "Dakar", "Dallas",
    "Damascus", "Delhi", "Denver", "Detroit", "Dublin", "Edinburgh", "Florence", "Frankfurt", "Geneva", "Glasgow",
    "Hamburg", "Hanoi", "Havana", "Helsinki", "Houston", "Istanbul", "Jakarta", "Karachi", "Kyoto", "Lagos",
    "Leipzig", "Lima", "Lisbon", "Liverpool", "London", "Lyon", "Madrid", "Manila", "Marseille", "Melbourne", "Miami",
    "Milan", "Montreal", "Moscow", "Mumbai", "Munich", "Nairobi", "Naples", "Oslo", "Ottawa", "Oxford", "Paris",
    "Perth", "Philadelphia", "Phoenix", "Prague", "Riga", "Rome", "Rotterdam", "Salzburg", "Santiago", "Seattle",
    "Seoul", "Shanghai", "Singapore", "Sofia", "Stockholm", "Sydney", "Tallinn", "Tehran", "Tokyo", "Toronto",
    "Toulouse", "Tunis", "Valencia", "Vancouver", "Venice", "Vienna", "Warsaw", "Zagreb", "Zurich",
)  # fmt: skip
PEOPLE = (
    "Adam", "Alice", "Amanda", "Andrew", "Barbara", "Benjamin", "Carlos", "Caroline", "Charles", "Daniel", "David",
    "Diana", "Edward", "Elena", "Emma", "Felix", "Frank", "George", "Grace", "Hannah", "Helen", "Henry", "Isabel",
    "Jacob", "James", "Julia", "Karen", "Kevin", "Laura", "Leonard", "Linda", "Lucas", "Maria", "Martin", "Michael",
    "Nancy", "Nicholas", "Olivia", "Oscar", "Patrick", "Peter", "Rachel", "Richard", "Robert", "Rosa", "Samuel",
    "Sarah", "Simon", "Stephen", "Susan", "Teresa", "Thomas", "Victor", "Walter", "William",
)  # fmt: skip
WORKPLACES = (
    "airport", "aquarium", "bakery", "bank", "bookshop", "brewery", "cinema", "dairy", "embassy", "factory", "garage",
    "gallery", "hospital", "hotel", "laboratory", "library", "museum", "nursery", "observatory", "pharmacy",
    "post office", "prison", "shipyard", "stadium", "theatre", "university", "vineyard", "warehouse", "zoo",
)  # fmt: skip
WORDS = (
    "amber", "anchor", "apple", "arrow", "autumn", "basket", "beacon", "bottle", "branch", "bridge", "bronze",
    "butter", "button", "candle", "canvas", "canyon", "carpet", "castle", "cherry", "circle", "cloud", "copper",
    "corner", "cotton", "crystal", "desert", "diamond", "doctor", "dragon", "engine", "falcon", "feather", "finger",
    "flower", "forest", "garden", "ginger", "glacier", "hammer", "harbor", "helmet", "honey", "island", "jacket",
    "jungle", "kettle", "ladder", "lantern", "lemon", "letter", "magnet", "maple", "marble", "meadow", "mirror",
    "monkey", "mountain", "needle", "ocean", "olive", "orange", "orchid", "oyster", "palace", "paper", "pearl",
    "pencil", "pepper", "pillow", "pirate", "planet", "pocket", "potato", "prairie", "rabbit", "ribbon", "river",
    "rocket", "saddle", "salmon", "shadow", "silver", "spider", "spring", "statue", "sugar", "summer", "sunset",
    "temple", "thunder", "tiger", "timber", "tomato", "tunnel", "turtle", "valley", "velvet", "violin", "walnut",
    "window", "winter", "wizard", "yellow", "zebra",
)  # fmt: skip
CONSONANTS = "bdfgklmnprstvz"
VOWELS = "aeiou"


def numbers(rng: Random, n: int) -> list[str]:
    """Return `n` different numbers of five digits."""
    return [str(number) for number in rng.sample(range(10_000, 100_000), n)]


def made_up(rng: Random, n: int, syllables: int) -> list[str]:
    """Return `n` different made-up words of `syllables` syllables; no word begins another."""
    words: dict[str, None] = {}
    while len(words) < n:
        words["".join(rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(syllables))] = None
    return list(words)
