"""Lists that prompt templates draw from. All of it was written for this project."""

SUBJECTS = (
    "the water cycle", "how bees find flowers", "the history of bread", "why leaves change colour", "compound interest",
    "how a bicycle stays upright", "the causes of inflation", "photosynthesis", "plate tectonics", "the rules of chess",
    "how vaccines work", "solar panels", "the moon's phases", "the printing press", "healthy sleep", "public libraries",
    "recycling glass", "black holes", "the French Revolution", "keeping a garden", "learning a language", "jazz music",
    "how the internet works", "electric cars", "volcanoes", "time management", "the human heart", "ancient Rome",
    "climate and weather", "the ocean's tides", "saving money", "job interviews", "meditation", "coral reefs", "tea",
    "supply and demand", "the immune system", "gravity", "machine learning", "urban planning", "the Silk Road",
    "batteries", "earthquakes", "poetry", "nutrition", "the scientific method", "rail travel", "deserts", "robots",
    "democracy", "friendship", "first aid", "tigers", "mountain climbing", "cooking rice", "fractions", "the violin",
    "space stations", "rivers", "honesty", "teamwork", "small businesses", "painting", "winter sports", "memory",
    "databases", "encryption", "the periodic table", "evolution", "wind power", "bridges", "marketing", "stress",
)  # fmt: skip
PLACES = (
    "a harbour town", "a mountain village", "an old library", "a night train", "a market square", "a lighthouse",
    "a space station", "a quiet farm", "a crowded airport", "an island", "a museum", "a forest cabin", "a bakery",
    "a desert camp", "a school yard", "a hospital ward", "a theatre", "a coffee shop", "a river boat", "a workshop",
)  # fmt: skip
PEOPLE = (
    "a retired teacher", "a young engineer", "two sisters", "a travelling musician", "a lost child", "a baker",
    "a nervous student", "an old fisherman", "a robot", "a detective", "a gardener", "a nurse", "a chess player",
    "a shopkeeper", "a pilot", "a poet", "a shepherd", "a violin maker", "an astronaut", "a bus driver",
)  # fmt: skip
TASKS = (
    "reverses a string", "checks whether a number is prime", "counts the words in a text", "merges two sorted lists",
    "computes the factorial of n", "removes duplicates from a list", "finds the largest element", "reads a CSV file",
    "converts Celsius to Fahrenheit", "sorts a list of tuples by the second item", "validates an email address",
    "computes Fibonacci numbers", "flattens a nested list", "counts vowels", "finds the longest word in a sentence",
    "checks for balanced brackets", "computes the mean and the median", "groups words by their first letter",
    "generates a random password", "computes the greatest common divisor", "performs a binary search",
    "transposes a matrix", "checks whether two strings are anagrams", "writes a dictionary to a JSON file",
    "counts how often each character occurs", "rotates a list by k places", "parses a date",
    "sums the digits of a number", "implements a stack", "implements a queue",
    "finds all pairs that add up to a target", "converts a number to binary",
)  # fmt: skip
OPENINGS = (
    "What", "What is", "What are", "What would happen if", "How", "How do I", "How does", "How can", "How many",
    "How much", "Why", "Why do", "Who", "When", "Where", "Which", "Is it", "Are there", "Can you", "Can you explain",
    "Could you", "Do you", "Should I", "I", "I am", "I need", "I want to", "I have", "My", "We are", "Please",
    "Explain", "Describe", "List", "Name", "Give me", "Tell me", "Compare", "Suggest", "Recommend", "Plan", "Help me",
    "Imagine", "Act as", "Write", "Write a", "Write a short", "Write an email", "Write a poem", "Write a story",
    "Write a letter", "Create", "Compose", "Continue this story", "Rewrite", "Rephrase", "Edit", "Improve", "Correct",
    "Translate", "Classify", "Extract", "Convert", "Summarize", "Summarise this", "Summarize the following passage",
    "Read the following", "In one sentence", "In a few sentences", "Using only", "Based on", "Given", "Given the",
    "If", "If a", "A", "A man", "A shop", "A farmer", "A train", "There are", "Suppose", "Calculate", "Compute",
    "Solve", "Find", "Find the", "Simplify", "Prove", "Sara has", "Tom buys", "Three friends",
    "Write a Python function", "Write a program", "Write a function that", "Write a SQL query", "Write a JavaScript",
    "Implement", "Debug", "Fix", "Here is some code", "Explain this code", "```", "def", "Design", "Develop",
    "Discuss", "Analyze", "Generate", "Provide", "Make", "Show", "Choose", "Brainstorm",
)  # fmt: skip
LANGUAGES = ("Python", "Python", "Python", "JavaScript", "Java", "C", "SQL", "Go")
ITEMS = ("apples", "books", "tickets", "pencils", "boxes", "cookies", "stamps", "bottles", "chairs", "coins", "cards")
